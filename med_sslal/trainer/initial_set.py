"""The images that a run labels before its first training."""

import logging
import shutil

from med_sslal.al.pool import Pool
from med_sslal.al.selection_io import read_selection, write_selection
from med_sslal.base.checkpoint import load_checkpoint
from med_sslal.trainer.inference import header_of, score
from med_sslal.trainer.remote_calls import together
from med_sslal.trainer.run_folder import RunFolder
from med_sslal.trainer.setup import RunSetup
from med_sslal.utils.interrupt import StopRequest

logger = logging.getLogger(__name__)


def initial_set(setup: RunSetup, run: RunFolder, pool: Pool, stop: StopRequest) -> tuple[str, ...]:
    """Ids of the initial set: those with a label, drawn, or picked from what the first model sees.

    A pick is kept in the run folder; the record of its pass is removed.

    Raises:
        Interrupted: A stop was asked for; the pass begins anew in a resumed run.
    """
    if setup.strategy.helper.starts_labelled:
        # A run keeps what it began with, where more labels have come since.
        known, kept = setup.strategy.oracle.known(pool.unlabelled), setup.begun_with
        if kept is None:
            return known
        if more := len(known) - len(kept):
            logger.warning(
                "%d images have got a label since this run began, and it does not train on them: "
                "start a new run, from this one's weights with --init-from",
                more,
            )
        return kept
    if not setup.strategy.helper.cold_start:
        return setup.strategy.helper.initial(pool)
    chosen = run.initial_selection
    if not chosen.exists():
        content = load_checkpoint(run.initial)
        if content["init_from"] is None and not setup.config["arch"]["args"].get("pretrained"):
            logger.warning(
                "the initial set is picked from embeddings of a backbone with random weights: set "
                "arch.args.pretrained, or give weights with --init-from"
            )
        logger.info("picking the initial set: scoring %d images", len(pool.unlabelled))
        header, path = header_of(setup, content, {}), run.initial_record
        what = {"weights": content["model"], "pool": pool, "path": path, "header": header}
        record = together(score, setup, stop, **what)
        assert record is not None
        selection = setup.strategy.helper.initial_query(record, pool)
        write_selection(chosen, selection, cycle=0, header=record.header)
    shutil.rmtree(run.initial_record, ignore_errors=True)
    return read_selection(chosen).image_ids
