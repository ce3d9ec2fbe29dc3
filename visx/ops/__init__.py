"""Operations on tensors that methods and metrics share."""
