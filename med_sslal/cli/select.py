"""Choose again from a stored pool record, without model or GPU, and show why."""

import re
import sys
from argparse import Namespace
from datetime import datetime

from med_sslal.al.record import PoolRecord
from med_sslal.al.restrict import slice_positions
from med_sslal.al.select import query_record
from med_sslal.al.selection_io import read_selection, write_selection
from med_sslal.cli.explain import explain
from med_sslal.cli.origin import NoImagesError, check_model, find_dataset, find_record
from med_sslal.cli.strategy import make_helper
from med_sslal.report.selection import draw_selection, selection_table
from med_sslal.trainer.run_folder import new_results
from med_sslal.utils.errors import ConfigError


def run(args: Namespace) -> int:
    """Choose, write and explain, or explain alone; returns the exit code."""
    if args.explain:
        return explain(args)
    if len(args.criterion or []) != 1 or args.budget is None:
        raise ConfigError(
            "give one --criterion (a JSON list combines several) and --budget, or --explain"
        )
    criterion = args.criterion[0]
    origin = find_record(args.record)
    record = PoolRecord.open(origin.record)
    notes = [check_model(record, origin)]
    helper = make_helper(args, origin.config, criterion)
    images = None
    if args.first or helper.suppress_adjacent is not None:
        try:
            instead = "--first 0 chooses without pictures"
            images = find_dataset(record, origin, instead).images
        except NoImagesError as reason:
            notes.append(f"no pictures: {reason}")
            if helper.suppress_adjacent is not None:
                raise ConfigError(
                    f"suppress_adjacent needs the data, which says where slices lie, but {reason}; "
                    "--suppress-adjacent null chooses without"
                ) from reason
    cycle = origin.number if args.cycle is None else args.cycle
    num_cycles = 1 if origin.config is None else origin.config.get("al_settings.num_cycles")
    helper = helper.at(cycle, num_cycles)
    positions = None if images is None else slice_positions(images.infos)
    selection = query_record(helper, record, cycle, positions)
    own = None
    if origin.cycle is not None and origin.cycle.queried:
        own = read_selection(origin.cycle.selection)
    folder = args.out
    if folder is None:
        names = "_".join(re.sub(r"[^\w.-]+", "_", name) for name in selection.criteria)
        home = origin.record.parent if origin.cycle is None else origin.cycle.run.path
        folder = home / f"select_{names}_{datetime.now():%Y%m%d_%H%M%S}"
    with new_results(folder) as out:
        write_selection(out.selection, selection, cycle, record.header)
        if images is not None and args.first:
            draw_selection(selection, record, images, out.pictures, first=args.first)
    table = selection_table(selection, record, cycle, own)
    sys.stdout.write("\n".join([table, *filter(None, notes), f"results: {out.path}", ""]))
    return 0
