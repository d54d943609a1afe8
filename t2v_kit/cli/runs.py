"""`t2v resume` and `t2v gallery`: runs that are there already."""

from __future__ import annotations

import time
from pathlib import Path

from ..errors import UserError
from ..hunyuan.names import check_name
from ..run.target import TRAINING, is_finished, read_record
from .app import app, import_quietly, report, what_remains
from .learning import continue_training


@app.command
def resume(folder: str, /, *, model: str | None = None, anyway: bool = False) -> None:
    """Continue an interrupted run.

    Args:
        folder: The run's folder.
        model: The model it was begun with; by default the recorded one.
        anyway: Continue although weights, device or versions are different now.
    """
    if not Path(folder).expanduser().is_dir():
        raise UserError(f"{folder!r}: there is no such folder; t2v gallery lists the runs.")
    if (Path(folder).expanduser() / TRAINING).exists():
        continue_training(folder)
        return
    record = read_record(folder)
    if model is not None:
        check_name(model)
    if is_finished(Path(folder).expanduser(), record["settings"]):
        print(f"finished {folder}: every file is there; resume makes again what is missing")
        return
    started = time.perf_counter()
    try:
        import_quietly("run.generating")
        from ..run.generating import resume as continue_run

        run = continue_run(folder, model, anyway)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(what_remains(folder)) from None
    report(run, time.perf_counter() - started)


@app.command
def gallery(folder: str = "runs", /, *, out: str | None = None) -> None:
    """List the runs in a folder, and draw one picture of them.

    Args:
        folder: Where the runs are.
        out: The PNG to write; by default gallery.png in that folder.
    """
    where = Path(folder).expanduser()
    if not where.is_dir():
        raise UserError(f'{folder!r}: there is no such folder; t2v "PROMPT" makes a run in runs/.')
    target = where / "gallery.png" if out is None else Path(out).expanduser()
    if target.suffix.lower() != ".png":
        raise UserError(f"--out {out}: must end in .png; {target.with_suffix('.png')} would work.")
    import_quietly("run.records")
    from PIL import Image

    from ..atomic import write_whole
    from ..run.fine_tuning import trainings
    from ..run.records import gallery as draw_gallery
    from ..run.records import runs

    records = runs(where)
    picture = draw_gallery(where)
    with write_whole(target) as temporary:
        Image.fromarray(picture).save(temporary, "PNG")
    for record in records:
        steps = "finished" if record.finished else f"{record.steps} of {record.settings['num_inference_steps']} steps"
        print(f"{record.folder}  {steps}  seed {record.settings['seed']}  {record.settings['prompt']}")
    for training in trainings(where):
        steps = "finished" if training.finished else f"{len(training.losses)} of {training.settings.steps} steps"
        print(f"{training.folder}  training, {steps}  {training.data.name}  {training.prompt}")
    print(f"written  {target}")
