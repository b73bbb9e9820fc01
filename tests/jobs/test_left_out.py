"""Files of an input that are left out are told wherever the run is."""

import json

from jobs.__main__ import main
from pictures import encoded, photo
from pipeline.report.text import left_out_text
from runs import igpt

TEXT = "3 of .jxl, 1 without extension, 1 of .csv, 1 of .jpg?width=200"


def test_what_is_left_out_is_told_at_the_end_in_the_report_in_status_and_in_plan(
    in_process, tiny_model, tmp_path, capsys
):
    """Past bug: it stood in report.json alone."""
    folder, run = tmp_path / "in", tmp_path / "run"
    folder.mkdir()
    for i, name in enumerate(["a.png", "b.PNG"]):
        (folder / name).write_bytes(encoded(photo(i)))
    for name in ("1.jxl", "2.jxl", "3.JXL", "labels.csv", "c.jpg?width=200", "README"):
        (folder / name).write_bytes(b"x")
    words = [f"--input={folder}", f"--model={tiny_model}"]
    main(["quantize", *words, f"--output={run}"])
    assert f"left out of the input: {TEXT}\n" in capsys.readouterr().err
    assert f"Left out of the input: {TEXT}." in (run / "report.html").read_text()
    main(["status", str(run)])
    assert f"left out {TEXT}\n" in capsys.readouterr().out
    main(["status", str(run), "--json"])
    counts = {".jxl": 3, ".csv": 1, ".jpg?width=200": 1, "": 1}
    assert json.loads(capsys.readouterr().out)["skipped_files"] == counts
    main(["plan", "quantize", *words])
    assert f"left out    {TEXT}\n" in capsys.readouterr().out
    igpt("quantize", input=folder, model=tiny_model, output=tmp_path / "quiet")
    assert "left out" not in capsys.readouterr().err


def test_what_a_palette_and_a_model_leave_out_is_told_too(tiny_model, tmp_path, capsys, caplog):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(encoded(photo(i)))
    (tmp_path / "a.heif2").write_bytes(b"x")
    main(["palette", f"--input={tmp_path}", f"--output={tmp_path / 'p.npy'}", "--colors=4"])
    assert "left out of the input: 1 of .heif2\n" in capsys.readouterr().err
    words = ["train", f"--input={tmp_path}", f"--palette={tmp_path / 'p.npy'}", "--image-size=8"]
    words += ["--n-layer=1", "--n-embd=16", "--n-head=2", "--steps=1", "--batch-size=2"]
    main([*words, f"--output={tmp_path / 'model'}"])
    said = capsys.readouterr().err + caplog.text
    assert f"input {tmp_path}, left out: 1 of .heif2, 1 of .npy" in said


def test_many_kinds_are_summed_up_and_names_cannot_break_the_line():
    counts = {f".e{i}": i for i in range(1, 12)} | {".a\nb": 20}
    assert left_out_text(counts) == (
        "20 of .a\\nb, 11 of .e11, 10 of .e10, 9 of .e9, 8 of .e8, 7 of .e7, 6 of .e6, 5 of .e5, "
        "10 of other kinds"
    )
    assert left_out_text({}) == ""
