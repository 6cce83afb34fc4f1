import json

import pytest
from krabby_trainer.errors import EvaluationError
from krabby_trainer.run.curves import compact, main, read_logs


def row(iteration, **values):
    return {"iteration": iteration, "wall_s": 2.0 * iteration, "Episode/mxd": 0.5} | values


def write(path, rows):
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return path


def test_pieces_follow_each_other_and_what_was_trained_twice_counts_once(tmp_path):
    first = write(tmp_path / "a.jsonl", [row(1), row(2), row(3)])
    second = write(tmp_path / "b.jsonl", [row(3), row(4)])
    assert [each["iteration"] for each in read_logs([first, second])] == [1, 2, 3, 4]


def test_a_compact_row_keeps_the_curves_and_the_levels_of_all_types():
    gait = {"Gait/power_w": 460.0}
    kept = compact(row(1, **{"Level/gap": 3.0, "Loss/value": 0.1, "Perf/collect_s": 0.6} | gait))
    curves = {"Episode/mxd", "Level/gap", "Gait/power_w", "Loss/value"}
    assert set(kept) == {"iteration", "wall_s"} | curves


def test_curves_come_out_as_a_picture(tmp_path):
    log = write(tmp_path / "log.jsonl", [row(i, **{"Level/gap": float(i)}) for i in (1, 2, 3)])
    assert main([str(tmp_path / "curves.png"), str(log)]) == 0
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("text", ["", "{", "[1]\n", '{"wall_s": 1}\n{"wall_s": 2}\n'])
def test_what_is_no_log_is_named(tmp_path, text, capsys):
    (tmp_path / "log.jsonl").write_text(text)
    with pytest.raises(EvaluationError, match=r"log\.jsonl"):
        read_logs([tmp_path / "log.jsonl"])
    assert main([str(tmp_path / "x.png"), str(tmp_path / "log.jsonl")]) == 1
    assert "log.jsonl" in capsys.readouterr().err


def test_without_arguments_it_says_what_to_type(capsys):
    assert main([]) == 2
    assert "OUT.png" in capsys.readouterr().err
