"""What libraries print stays out of the way, and is kept as far as it is of use."""

from __future__ import annotations

import os

from krabby_trainer.run import output
from krabby_trainer.run.output import aside


def test_what_is_printed_goes_to_the_file_and_back(tmp_path, capfd):
    path = tmp_path / "output.log"
    with aside(path) as kept:
        os.write(1, b"from a kernel\n")
        with aside(path, errors=True):
            os.write(2, b"from a library\n")
        os.write(2, b"for the person\n")
        os.write(1, b"again\n")
        assert kept.path == path
    os.write(1, b"after\n")
    assert path.read_text() == "from a kernel\nfrom a library\nagain\n"
    assert capfd.readouterr() == ("after\n", "for the person\n")


def test_file_that_stayed_empty_is_removed_by_who_made_it(tmp_path):
    path = tmp_path / "output.log"
    with aside(path):
        with aside(path, errors=True):
            pass
        assert path.exists()
        os.write(1, b"x")
    assert path.read_text() == "x"
    with aside(tmp_path / "other.log"):
        pass
    assert not (tmp_path / "other.log").exists()


def test_file_does_not_grow_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(output, "_LARGEST", 100)
    path = tmp_path / "output.log"
    with aside(path) as kept:
        for _ in range(12):
            os.write(1, b"iterations limit reached\n")
            kept.write(None)
    assert 0 < path.stat().st_size <= 125


def test_nowhere_is_a_place(capfd):
    with aside(None, errors=True):
        os.write(1, b"x")
        os.write(2, b"x")
    assert capfd.readouterr() == ("", "")
