"""`python test.py`: evaluate a checkpoint with its run's own config."""

import logging
import sys
from argparse import Namespace
from datetime import datetime
from pathlib import Path

from med_sslal.base.checkpoint import load_checkpoint, sidecar
from med_sslal.cli.build import build_dataset, build_setup, devices_of, load_weights
from med_sslal.cli.registries import registries
from med_sslal.cli.run_folder import find_run, finished_best
from med_sslal.config.parse_config import ConfigParser
from med_sslal.eval.coco_utils import to_coco_predictions
from med_sslal.eval.metric import evaluate
from med_sslal.logger.logger import setup_logging
from med_sslal.report.run_report import write_evaluation_pictures
from med_sslal.report.table import metric_table
from med_sslal.trainer.inference import loader_of, predict, split_labels
from med_sslal.utils.errors import CheckpointError, UserError
from med_sslal.utils.interrupt import StopRequest
from med_sslal.utils.util import write_json

logger = logging.getLogger(__name__)


def test(args: Namespace) -> int:
    """Evaluate and write `<run>/test_<time>/`; returns the exit code.

    Raises:
        UserError: Something the user can mend.
    """
    run = find_run(args.resume, Path("exp_results"))
    complaints: list[str] = []
    if run.checkpoint is None:
        path, content, complaints = finished_best(run.folder)
    else:
        path = run.checkpoint
        content = load_checkpoint(path, require_checksum=False)
    if "config" not in content:
        raise CheckpointError(f"{path} has no config in it: name a checkpoint of a cycle")
    config = ConfigParser.from_dict(content["config"], registries(), source=str(path))
    setup_logging(config.get("trainer.verbosity"))
    for complaint in complaints:
        logger.warning("%s; falling back to %s", complaint, path)
    if not sidecar(path).exists():
        logger.warning("%s has no checksum file beside it: it is taken unverified", path)
    devices = devices_of(config, args.device)
    dataset = build_dataset(config)
    if content["data_fingerprint"] != dataset.fingerprint():
        logger.warning("the data is not that of the training: its images, labels or split differ")
    setup = build_setup(config, dataset, devices, show_progress=True)
    model = setup.make_model()
    load_weights(model, content, path)
    labels = split_labels(dataset, args.split)
    ids = dataset.splits[args.split]
    logger.info("evaluating %s on %d %s images", path, len(ids), args.split)
    with StopRequest() as stop:
        found, loss = predict(
            setup.parallel(model.to(devices.main)),
            loader_of(setup, ids, labels),
            setup,
            stop=stop,
            title=args.split,
        )
    result = evaluate(
        setup.metrics, found, labels, dataset.infos, dataset.class_names, seed=setup.seed
    )
    result["values"]["loss"] = loss
    folder = path.resolve().parent if run.checkpoint else run.folder
    if (folder.parent / "config.json").exists():
        folder = folder.parent
    out = folder / f"{args.split}_{datetime.now():%Y%m%d_%H%M%S}"
    try:
        out.mkdir()
    except OSError as error:
        raise UserError(f"cannot make the folder {out}: {error.strerror}") from error
    write_json(out / "metrics.json", {"checkpoint": str(path), "split": args.split, **result})
    write_json(
        out / "predictions.json", to_coco_predictions(found, dataset.infos, dataset.class_names)
    )
    title = f"{config['name']}: {args.split}, {len(ids)} images"
    write_evaluation_pictures(out, result, found, labels, dataset, title)
    sys.stdout.write(metric_table(result) + "\n")
    logger.info("results: %s", out)
    return 0
