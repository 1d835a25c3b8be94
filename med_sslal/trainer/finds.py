"""What the criterion of a run finds, seen on the validation images after each query's pass."""

import logging

from med_sslal.al.al_helpers import ActiveLearningHelper
from med_sslal.al.finds import MISTAKES, finds, record_mistakes, write_finds
from med_sslal.al.pool import Pool
from med_sslal.al.record import PoolRecord
from med_sslal.trainer.inference import score_best
from med_sslal.trainer.run_folder import CycleFolder
from med_sslal.trainer.setup import RunSetup
from med_sslal.utils.interrupt import StopRequest

logger = logging.getLogger(__name__)


def note_finds(
    setup: RunSetup,
    stop: StopRequest,
    folder: CycleFolder,
    pool_record: PoolRecord,
    helper: ActiveLearningHelper,
) -> None:
    """Score the validation images as the pool was, and write what the criterion finds on them.

    Nothing that is chosen depends on it, and the `helper` is that of the query. Both outcomes are
    skipped where they are there.
    """
    if folder.finds.exists():
        return
    if not setup.images.splits["val"]:
        text = "%s: there are no validation images to show what the criterion finds"
        logger.info(text, folder.path.name)
        return
    record = score_best(
        setup,
        stop,
        folder,
        pool=Pool((), setup.images.splits["val"]),
        path=folder.val_record,
        header=lambda best: pool_record.header,
        views=helper.views,
        columns=helper.columns,
        title="scoring the validation images",
        labelled_of=pool_record.path,
    )
    rating = helper.rate(record, folder.number)
    truth = record_mistakes(record, setup.split_labels("val"), setup.images.infos)
    found = finds(rating, truth)
    write_finds(folder.finds, found, folder.number, record.header)
    parts = [
        f"{words} {each.top:.2f} against {each.all:.2f} (rank correlation "
        + ("undefined)" if each.correlation is None else f"{each.correlation:.2f})")
        for words, each in zip(MISTAKES.values(), found.findings.values(), strict=True)
    ]
    text = "cycle %d: the top %d validation images by %s, an image, against all %d: %s"
    what = (found.n_top, found.criterion, found.n_images)
    logger.info(text, folder.number, *what, ", ".join(parts))
