"""The query of a cycle, as it goes out to a person."""

import logging

from med_sslal.al.record import PoolRecord
from med_sslal.al.selection_io import detections_of, read_selection
from med_sslal.data.pictures import PictureImages
from med_sslal.practice.oracle import HumanOracle
from med_sslal.practice.query_folder import write_query
from med_sslal.trainer.run_folder import CycleFolder
from med_sslal.trainer.setup import RunSetup

logger = logging.getLogger(__name__)


def send_query(setup: RunSetup, folder: CycleFolder, oracle: HumanOracle) -> None:
    """Write the folder of a cycle's query, unless it is there: what is selected, as seen."""
    if folder.query is not None:
        return
    images = setup.images
    # Others are refused before the run begins.
    assert isinstance(images, PictureImages)
    selection, record = read_selection(folder.selection), PoolRecord.open(folder.record)
    query = write_query(
        folder.path,
        images,
        selection,
        detections_of(record, selection.image_ids, oracle.shown_score),
        run=folder.run.path.name,
        cycle=folder.number,
        model_hash=record.header.model_hash,
        config_hash=record.header.config_hash,
        class_names=setup.class_names,
        blind=oracle.blind,
        box_padding_px=oracle.box_padding_px,
        beside=oracle.beside,
    )
    logger.info("cycle %d: query %s is written", folder.number, query.query_id)
