"""Files appear whole or not at all, also when several threads write into one folder."""

from __future__ import annotations

from visx import artifacts


def test_clearing_a_folder_spares_what_this_process_is_writing_and_removes_what_others_left(tmp_path, monkeypatch):
    left = tmp_path / ".visx-tmp-99999999-abc"
    left.write_bytes(b"half")
    replaced = artifacts.Path.replace

    def replace(self, target):
        artifacts.make_folder(tmp_path)  # another thread, about to write beside this file
        return replaced(self, target)

    monkeypatch.setattr(artifacts.Path, "replace", replace)
    artifacts.write_whole(tmp_path / "a.npy", b"whole")
    assert (tmp_path / "a.npy").read_bytes() == b"whole" and not left.exists()
