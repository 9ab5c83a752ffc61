"""A front and lanes without graphs: a dispatcher, a scheduler a lane, sequences that end after so many steps."""

from collections import deque

from dragoman.server.engine.dispatcher import Call, Dispatcher, Sequence
from dragoman.server.engine.scheduler import Scheduler


class SimulatedLane:
    """A lane that holds its own sequences, as a lane in another process does."""

    def __init__(self, num_slots: int, reserved_rows: int, max_step_cost: int) -> None:
        self.scheduler = Scheduler(
            num_slots, max_start_tokens=10**6, reserved_rows=reserved_rows, max_step_cost=max_step_cost
        )
        self.inbox: deque[Sequence] = deque()
        self._calls: dict[Call, Call] = {}
        self._of_front: dict[Sequence, Sequence] = {}
        self.rows: dict[Sequence, int] = {}  # of the front, each with the steps that it has left
        self.num_rows_computed = 0  # in the last step
        self.started: list[Sequence] = []

    def receive(self, num_steps: dict[Sequence, int]) -> None:
        """Take in what has arrived."""
        self._num_steps = num_steps
        while self.inbox:
            theirs = self.inbox.popleft()
            call = self._calls.setdefault(theirs.call, Call())
            mine = Sequence(theirs.num_input_tokens, None, theirs.num_rows, call, theirs.cost)
            mine.is_small = theirs.is_small
            self._of_front[mine] = theirs
            self.scheduler.submit(mine)

    def step(self) -> tuple[list[Sequence], list[Sequence]]:
        """One step; returns the front's sequences that started and those that ended."""
        plan = self.scheduler.plan(0.0)
        self.num_rows_computed = plan.num_rows
        started = [self._of_front[mine] for mine, _ in plan.starts]
        self.started += started
        self.rows |= {sequence: self._num_steps[sequence] for sequence in started}
        ended = []
        for mine in [each for each in self._of_front if self._of_front[each] in self.rows]:
            theirs = self._of_front[mine]
            self.rows[theirs] -= 1
            if self.rows[theirs] <= 0:
                self.scheduler.finish(mine)
                del self.rows[theirs], self._of_front[mine]
                ended.append(theirs)
        return started, ended

    @property
    def num_rows(self) -> int:
        """Rows in use."""
        return sum(sequence.num_rows for sequence in self.rows)

    @property
    def num_waiting_rows(self) -> int:
        """Rows that are waited for."""
        return sum(each.num_rows for each in self._of_front.values() if each not in self.rows)


class Service:
    """A dispatcher in front of simulated lanes."""

    def __init__(
        self,
        num_lanes: int,
        num_slots: int,
        max_waiting: int = 10_000,
        *,
        reserved_rows: int = 0,
        max_step_cost: int = 10**6,
        rows_before_spread: int = 1,
        lookahead_rows: int = 0,
    ) -> None:
        self._shape = (num_slots, reserved_rows, max_step_cost)
        self.dispatcher = Dispatcher(
            num_lanes,
            num_slots,
            max_waiting,
            reserved_rows=reserved_rows,
            max_step_cost=max_step_cost,
            rows_before_spread=rows_before_spread,
            lookahead_rows=lookahead_rows,
        )
        self.lanes = {index: SimulatedLane(*self._shape) for index in range(num_lanes)}
        self.retiring: set[int] = set()
        self.num_steps: dict[Sequence, int] = {}
        self.accepted: list[Sequence] = []
        self.outcomes: dict[Sequence, str] = {}
        self.num_starts: dict[Sequence, int] = {}
        self.sent: list[tuple[Sequence, int]] = []

    def submit(self, *sequences: Sequence, num_steps: int = 1) -> None:
        """Hand in sequences that take so many steps each."""
        self.dispatcher.submit(*sequences)
        self.accepted += sequences
        self.num_steps |= dict.fromkeys(sequences, num_steps)
        self.dispatch()

    def dispatch(self) -> None:
        """Send what there is room for."""
        sent = self.dispatcher.dispatch()
        self.sent += sent
        for sequence, lane in sent:
            assert sequence.lane == lane
            assert lane not in self.retiring
            self.lanes[lane].inbox.append(sequence)

    def end(self, sequence: Sequence, outcome: str) -> None:
        """Note how a sequence ended."""
        assert sequence not in self.outcomes, "it ended twice"
        self.outcomes[sequence] = outcome

    def cancel(self, sequence: Sequence) -> None:
        """Cancel one that is not over; a lane that has it ends it in its next step."""
        if self.dispatcher.cancel(sequence):
            self.end(sequence, "cancelled")
        else:
            self.num_steps[sequence] = 0
            if sequence in self.lanes[sequence.lane].rows:
                self.lanes[sequence.lane].rows[sequence] = 0

    def step(self, index: int) -> None:
        """Have a lane step and its report arrive."""
        lane = self.lanes[index]
        lane.receive(self.num_steps)
        started, ended = lane.step()
        for sequence in started:
            self.dispatcher.start(sequence)
            self.num_starts[sequence] = self.num_starts.get(sequence, 0) + 1
        for sequence in ended:
            self.dispatcher.finish(sequence)
            self.end(sequence, "finished")
        self.dispatcher.set_load(index, lane.num_rows, lane.num_waiting_rows)
        self.dispatch()

    def step_all(self, times: int = 1) -> None:
        """Have all lanes step in turn."""
        for _ in range(times):
            for index in list(self.lanes):
                self.step(index)

    def kill(self, index: int) -> list[Sequence]:
        """A lane dies; returns what is lost."""
        del self.lanes[index]
        self.retiring.discard(index)
        lost = self.dispatcher.remove_lane(index)
        for sequence in lost:
            self.end(sequence, "lost")
        self.dispatch()
        return lost

    def retire(self, index: int) -> None:
        """A lane gets nothing more; it goes on with what it has."""
        self.dispatcher.retire_lane(index)
        self.retiring.add(index)
        self.dispatch()

    def replace(self, index: int) -> None:
        """A lane is there again."""
        self.lanes[index] = SimulatedLane(*self._shape)
        self.dispatcher.add_lane(index)
        self.dispatch()

    def finish_all(self) -> None:
        """Step until all are over."""
        for _ in range(10_000):
            if len(self.outcomes) == len(self.accepted):
                return
            self.step_all()
        raise AssertionError("some wait for ever")
