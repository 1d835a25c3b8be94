"""The cycle loop: train, with a student or without, evaluate, score, select, label, and again.

Every stage writes its outcome atomically into the cycle's folder and is skipped where the outcome
is there already, so a resumed run is the same walk over the same files.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from med_sslal.al.oracle import SimulatedOracle
from med_sslal.al.pool import Pool
from med_sslal.al.purchase import purchase
from med_sslal.al.selection_io import read_selection, write_detections, write_selection
from med_sslal.base.types import Annotation
from med_sslal.eval.coco_utils import to_coco_predictions
from med_sslal.practice.oracle import HumanOracle, Progress
from med_sslal.ssl.pseudo_labels import NO_LABELS, PseudoLabels
from med_sslal.trainer.finds import note_finds
from med_sslal.trainer.inference import header_of, predict_split, score_best
from med_sslal.trainer.initial_set import initial_set
from med_sslal.trainer.remote_calls import help_out, together
from med_sslal.trainer.results import measured, write_metrics
from med_sslal.trainer.run_folder import CycleFolder, RunFolder
from med_sslal.trainer.send_query import send_query
from med_sslal.trainer.setup import RunSetup
from med_sslal.trainer.student import decide, pseudo_label, teacher_thresholds
from med_sslal.trainer.train_cycle import train_cycle
from med_sslal.utils.distributed import naming_lost_peers
from med_sslal.utils.errors import CheckpointError
from med_sslal.utils.interrupt import Interrupted, StopRequest
from med_sslal.utils.util import read_json, write_json

logger = logging.getLogger(__name__)


@dataclass
class CycleState:
    """What a cycle starts from."""

    number: int  # 0 for the training on the initial set.
    pool: Pool


def run_cycles(setup: RunSetup, run: RunFolder, stop: StopRequest) -> list[dict[str, Any]]:
    """Run what is left of a run in all of its processes, of which only rank 0 touches its folder.

    `stop` is checked between batches and stages. Returns one row per finished cycle; none in other
    ranks than 0.

    Raises:
        Interrupted: A stop was asked for; what is done is on disk.
        UserError: Among others, that another process of the run was lost.
    """
    with naming_lost_peers():
        if not setup.world.is_main:
            help_out(setup, stop)
            return []
        try:
            rows = CycleLoop(setup, run, stop).run()
        except Interrupted:
            setup.world.broadcast(None)
            raise
        setup.world.broadcast(None)
        return rows


class CycleLoop:
    """Walks through the cycles of a run, in rank 0 (see `run_cycles`)."""

    def __init__(self, setup: RunSetup, run: RunFolder, stop: StopRequest) -> None:
        self._setup, self._run, self._stop = setup, run, stop

    def run(self) -> list[dict[str, Any]]:
        """Run what is left; returns one row per finished cycle."""
        setup, rows = self._setup, []
        pool = Pool((), setup.images.splits["train"])
        initial = initial_set(setup, self._run, pool, self._stop)
        state = CycleState(0, pool.label(initial))
        while True:
            folder = self._run.cycle(state.number)
            folder.path.mkdir(exist_ok=True)
            write_json(folder.pool, state.pool.state_dict())
            self._train(state)
            rows.append(self._evaluate(state))
            planned = state.number == setup.strategy.num_cycles
            last = planned or not state.pool.unlabelled
            # A resumed run walks through finished cycles; the table on disk has all of them.
            if last or not self._run.cycle(state.number + 1).path.exists():
                self._run.write_summary(rows, finished=last)
            self._stop.check()
            if last and not planned:
                text = "every image of the pool is labelled: cycle %d of %d is the last"
                logger.info(text, state.number, setup.strategy.num_cycles)
            if last:
                return rows
            query = self._query(state, rows)
            self._stop.check()
            if not query:
                self._run.write_summary(rows, finished=True)
                return rows
            after = self._pool_after(state, query)
            if after is None:
                return rows
            state = CycleState(state.number + 1, after)

    def _labels(self, state: CycleState) -> dict[str, Annotation]:
        return self._setup.strategy.oracle.label(state.pool.labelled, state.pool.answers)

    def _train(self, state: CycleState) -> None:
        """Get the cycle's model, unless it is there: trained on labels, or a student's, or that."""
        setup, folder = self._setup, self._run.cycle(state.number)
        labels = self._labels(state)
        if folder.trained or folder.supervised.trained:
            self._reopen_if_longer(folder)
        online = setup.strategy.mean_teacher
        # A mean teacher needs an image for each process.
        least = setup.world.size if online else 1
        if setup.strategy.labeller is None or len(state.pool.unlabelled) < least:
            self._train_in(folder, state, labels)
            return
        if folder.measured:
            return
        folder.supervised.path.mkdir(exist_ok=True)
        if online:
            self._train_in(folder.supervised, state, labels)
            self._stop.check()
            if not folder.trained and not folder.rejected.exists():
                sure = teacher_thresholds(setup, self._stop, folder)
                self._train_in(folder, state, labels, thresholds=sure)
            decide(setup, self._stop, folder, has_student=True)
            return
        if not folder.pseudo_labels.exists():
            self._train_in(folder.supervised, state, labels)
            self._stop.check()
        pseudo = pseudo_label(setup, self._stop, folder, state.pool, labels)
        if pseudo.labels and not folder.rejected.exists():
            self._stop.check()
            self._train_in(folder, state, labels, pseudo)
        decide(setup, self._stop, folder, has_student=bool(pseudo.labels))

    def _train_in(
        self,
        folder: CycleFolder,
        state: CycleState,
        labels: Mapping[str, Annotation],
        pseudo: PseudoLabels = NO_LABELS,
        thresholds: Mapping[str, float] | None = None,
    ) -> None:
        """Train in a folder, with a mean teacher or none, unless its training has ended already."""
        if folder.trained:
            return
        place = (state.number, self._setup.strategy.num_cycles)
        text = "cycle %d/%d: training on %d labelled and %d pseudo-labelled images"
        if thresholds is not None:
            text = "cycle %d/%d: training on %d labelled and, with a mean teacher, %d other images"
        others = pseudo.labels if thresholds is None else state.pool.unlabelled
        logger.info(text, *place, len(labels), len(others))
        outcome = together(
            train_cycle,
            self._setup,
            self._stop,
            folder=folder,
            labels=labels,
            pseudo=pseudo,
            pool=state.pool,
            thresholds=thresholds,
        )
        # First: nothing comes back to them once the training has ended.
        if self._setup.settings.keep_checkpoints != "all":
            folder.drop_numbered()
        write_json(folder.training, {**outcome, "planned": self._setup.settings.length})
        if self._setup.settings.keep_checkpoints == "best":
            folder.drop_last()

    def _reopen_if_longer(self, folder: CycleFolder) -> None:
        """Let an ended training go on where a resumed run asks for a longer one.

        It does where nothing was chosen by its model yet; its outcomes are removed then.
        """
        planned, now = folder.planned, self._setup.settings.length
        if planned == now:
            return
        if folder.closed is not None:
            kept = (folder.path.name, planned, folder.closed)
            logger.warning("%s keeps its training of %s, because %s", *kept)
            return
        logger.info("%s: the training of %s goes on to %s", folder.path.name, planned, now)
        folder.reopen()

    def _evaluate(self, state: CycleState) -> dict[str, Any]:
        """Measure the best model on val and test; returns the cycle's row."""
        folder = self._run.cycle(state.number)
        if folder.measured:
            row: dict[str, Any] = read_json(folder.metrics)["row"]
            return row
        setup, started = self._setup, time.monotonic()
        weights = folder.load_best()["model"]
        results: dict[str, Any] = {}
        for split in ("val", "test"):
            what = {"weights": weights, "split": split, "title": f"cycle {state.number} {split}"}
            found, loss = together(predict_split, setup, self._stop, **what)
            results[split] = measured(setup, found, loss, split)
            path = folder.predictions if split == "test" else folder.val_predictions
            content = to_coco_predictions(found, setup.images.infos, setup.class_names)
            write_json(path, content)
        seconds = time.monotonic() - started
        folder.note_seconds("evaluation", seconds)
        pseudo = folder.pseudo_labels
        made = PseudoLabels.read(pseudo) if pseudo.exists() else None
        return write_metrics(setup, folder, self._labels(state), made, results, seconds)

    def _query(self, state: CycleState, rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
        """Score the pool and choose the next labels: the images to label, in order.

        `rows` are those of all cycles so far. None are chosen where the budget pays for no label.
        """
        setup, folder = self._setup, self._run.cycle(state.number)
        strategy, oracle = setup.strategy, setup.strategy.oracle
        if not folder.queried:
            helper = strategy.helper.at(state.number, strategy.num_cycles, rows)
            if isinstance(oracle, HumanOracle):
                helper = helper.costing(oracle.paced(helper.costs, state.pool.answers))
            record = score_best(
                setup,
                self._stop,
                folder,
                pool=state.pool,
                path=folder.record,
                header=lambda best: header_of(setup, best, self._labels(state)),
                views=helper.views,
                columns=helper.columns,
            )
            note_finds(setup, self._stop, folder, record, helper)
            started = time.monotonic()
            asked = (record, state.pool, state.number, setup.images.infos)
            if isinstance(oracle, SimulatedOracle):
                selection = purchase(helper, oracle, *asked)
            else:
                # What a person will find is not known: the plan is all there is.
                selection = helper.query(*asked[:2], helper.budget_num, *asked[2:])
            folder.note_seconds("selection", time.monotonic() - started)
            # First: where a selection is, what the report shows of it is there too.
            write_detections(folder.detections, selection, record, setup.images.infos, state.number)
            write_selection(folder.selection, selection, cycle=state.number, header=record.header)
        ids = read_selection(folder.selection).image_ids
        if not ids:
            text = "cycle %d is the last: budget_num %d %s pays for none of the unlabelled images"
            own = strategy.helper
            logger.warning(text, state.number, own.budget_num, own.costs.unit)
            return ids
        if isinstance(oracle, HumanOracle):
            send_query(setup, folder, oracle)
        counts = (state.number, len(ids), len(state.pool.unlabelled) - len(ids))
        logger.info("cycle %d: %d images selected, %d stay unlabelled", *counts)
        self._drop_old_records(state.number)
        return ids

    def _pool_after(self, state: CycleState, query: Sequence[str]) -> Pool | None:
        """The pool with the labels of a query; None where the run waits for a person's answers."""
        oracle, following = self._setup.strategy.oracle, self._run.cycle(state.number + 1)
        if not isinstance(oracle, HumanOracle):
            return state.pool.label(query)
        if following.pool.exists():
            # A cycle stands on what was answered when it began.
            return Pool(**read_json(following.pool))
        if following.trained or following.supervised.trained:
            raise CheckpointError(
                f"{following.pool} is missing, and nothing else tells which answers its cycle was "
                f"trained on: put a copy back, or remove {following.path} and the cycles after it"
            )
        if Progress.of(query, oracle.journal).missing(oracle.min_answered):
            return None
        return oracle.pool_after(state.pool, query, self._setup.images.splits["train"])

    def _drop_old_records(self, cycle: int) -> None:
        for number in range(cycle - self._setup.settings.keep_records + 1):
            self._run.cycle(number).drop_records()
