"""The state machine: every way in which the world may go on, one small step at a time.

An action is something that happens outside, and a number of callbacks that a process goes on after it: so a process
is met, killed or frozen at any await. Numbers choose among what there is (the message, the call, the lease) by
their remainder, so that Hypothesis can make them small. There is one rule, which draws among the actions that are
possible now: rules of their own would be switched off at random by Hypothesis, those that keep the fleet at work
included, and nine worlds of ten would be idle.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar, Final, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.model.judge import Judge
from tests.model.process import BUSY_STEPS, Trouble, WorkerProcess
from tests.model.provider import Policy
from tests.model.world import SUBJECTS, WORKERS, Stage, World

T = TypeVar("T")

A_MOMENT: Final = 2.5
A_CALL: Final = 12.5
A_LEASE: Final = 27.0
A_CLAIM: Final = 33.0
SETTLING_ROUNDS: Final = 8

PLACE: Final = st.integers(0, WORKERS - 1)
WHICH: Final = st.integers(0, 3)
CUSTOMER: Final = st.integers(0, len(SUBJECTS) - 1)
FAR: Final = st.sampled_from([0, BUSY_STEPS, 1] * 4 + [BUSY_STEPS] * 3 + [*range(2, 16), 18, 21, 25, 30])
"""How many callbacks a process goes on: often until it has to wait. The first one after an answer reads it and
writes it to the journal; within 20 it is saved."""


Act = tuple[str, tuple[object, ...]]
"""One of :class:`Acts` by its name, and its arguments."""


class Then(Enum):
    """What becomes of a process after it went on."""

    ON = "it goes on"
    FROZEN = "it is frozen there"
    KILLED = "it is killed there"


THEN: Final = st.sampled_from([Then.ON] * 2 + [Then.FROZEN, Then.KILLED])


class Acts:
    """All that may happen to a world. Each does nothing when there is nothing for it to happen to."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.spared: frozenset[str] = frozenset()
        """What does not happen here, as part of something else either."""

    # The fleet at work

    def schedule(self, place: int, steps: int, then: Then) -> None:
        """A scheduler claims what is due, and a worker gets the message."""
        before = len(self.world.desk.jobs)
        self.world.tick()
        process = self.world.processes[place]
        if len(self.world.desk.jobs) > before and process.open:
            process.take(self.world.desk.jobs[-1])
            self._run(process, steps, then)

    def refresh(self, place: int) -> None:
        """A scheduler, a worker and the provider do all that is to be done."""
        self.schedule(place, BUSY_STEPS, Then.ON)
        for call in self.world.server.waiting():
            if call.asker == self.world.processes[place].name:
                self.world.server.deliver(call)
        self.world.processes[place].run()

    def take_over(self, place: int, wiped: bool) -> None:
        """Claims expire, and a worker does all that is to be done; perhaps Redis has forgotten its leases."""
        self.world.pass_time(A_CLAIM)
        if wiped:
            self.flush_redis()
        self.refresh(place)

    def schedule_and_forget(self) -> None:
        """A scheduler claims what is due, and dies before it has published, or the broker is wiped."""
        self.world.tick()
        self.world.desk.jobs.clear()

    def deliver_again(self, job: int, place: int, wiped: bool, steps: int) -> None:
        """The broker delivers a message once more, to anybody; perhaps Redis has forgotten its leases."""
        if wiped:
            self.flush_redis()
        process = self.world.processes[place]
        if process.open and self.world.desk.jobs:
            process.take(_choose(self.world.desk.jobs[-4:], job))
            process.run(steps)

    def go_on(self, place: int, steps: int) -> None:
        """A process gets a moment of processor time."""
        self.world.processes[place].run(steps)

    def keep_house(self, place: int, steps: int) -> None:
        """A worker looks for what dead siblings left."""
        if self.world.processes[place].open:
            self.world.processes[place].keep_house()
            self.world.processes[place].run(steps)

    def let_time_pass(self, seconds: float) -> None:
        """Calls time out, leases and claims expire."""
        self.world.pass_time(seconds)

    # The provider

    def answer(self, call: int, steps: int, then: Then) -> None:
        """The provider decides, its answer arrives, and the worker goes on."""
        if waiting := self.world.server.waiting():
            chosen = _choose(waiting, call)
            self.world.server.deliver(chosen)
            self._run(self._asker(chosen.asker), steps, then)

    def decide(self, call: int) -> None:
        """The provider decides, and its answer is still on the way."""
        if waiting := self.world.server.waiting():
            self.world.server.decide(_choose(waiting, call))

    def lose_the_answer(self, call: int, steps: int, then: Then) -> None:
        """The connection breaks: before the provider decided, or after."""
        if waiting := self.world.server.waiting():
            chosen = _choose(waiting, call)
            self.world.server.reset(chosen)
            self._run(self._asker(chosen.asker), steps, then)

    def be_unavailable(self, call: int, steps: int) -> None:
        """The provider answers 503."""
        if waiting := self.world.server.waiting():
            chosen = _choose(waiting, call)
            self.world.server.fail(chosen)
            self._asker(chosen.asker).run(steps)

    def read_late(self, call: int) -> None:
        """The provider reads a request whose sender is gone already."""
        if unread := self.world.server.unread():
            self.world.server.decide(_choose(unread, call))

    # Death and sleep

    def kill(self, place: int, steps: int) -> None:
        """A worker is killed, some callbacks from now."""
        self._run(self.world.processes[place], steps, Then.KILLED)

    def restart(self, steps: int, then: Then) -> None:
        """A new worker takes the place of a dead one."""
        for place, process in enumerate(self.world.processes):
            if not process.alive:
                self.world.restart(place)
                self._run(self.world.processes[place], steps, then)
                return

    def freeze(self, place: int, steps: int) -> None:
        """A worker is stopped, some callbacks from now."""
        self._run(self.world.processes[place], steps, Then.FROZEN)

    def thaw(self, place: int, steps: int) -> None:
        """A stopped worker goes on."""
        self.world.processes[place].frozen = False
        self.world.processes[place].run(steps)

    # Servers

    def trouble_postgres(self, place: int, trouble: Trouble, steps: int) -> None:
        """A worker's next transaction fails, and perhaps nobody can say how it ended."""
        process = self.world.processes[place]
        if process.alive and len(process.troubles) < 2:
            process.troubles.append(trouble)
            process.run(steps)

    def flush_redis(self) -> None:
        """Redis forgets everything."""
        if "flush_redis" not in self.spared:
            self.world.flush_redis()

    def switch_redis(self) -> None:
        """Redis goes away, or comes back."""
        self.world.redis_away = not self.world.redis_away

    def lose_a_lease(self, lease: int) -> None:
        """One lease expires before its time."""
        if leases := self.world.leases():
            self.world.lose_lease(_choose(leases, lease))

    # People

    def sign_in_again(self, customer: int) -> None:
        """A customer reconnects at the provider."""
        self.world.sign_in_again(self.world.customers[customer])

    def reconnect(self, customer: int) -> None:
        """A customer reconnects, and we are told at once."""
        self.sign_in_again(customer)
        self.import_pending()

    def import_pending(self) -> None:
        """What customers did at the provider reaches us."""
        for customer in self.world.customers:
            if customer.pending:
                self.world.import_pending(customer)

    def import_again(self, customer: int) -> None:
        """The same file is imported once more."""
        self.world.import_again(self.world.customers[customer])

    def revoke_at_the_provider(self, customer: int) -> None:
        """A customer ends the grant."""
        self.world.server.authority.grants.revoke_subject(self.world.customers[customer].subject)

    def _run(self, process: WorkerProcess, steps: int, then: Then) -> None:
        process.run(steps)
        if then is Then.FROZEN and "freeze" not in self.spared:
            process.frozen = True
        if then is Then.KILLED and "kill" not in self.spared and process.alive:
            process.kill()

    def _asker(self, name: str) -> WorkerProcess:
        return next(process for process in self.world.processes if process.name == name)


@dataclass(frozen=True)
class Kind:
    """When an action is drawn, how often, and with what."""

    weight: int
    arguments: tuple[st.SearchStrategy[object], ...] = ()
    possible: Callable[[World], object] = lambda _world: True


def _asked(world: World) -> object:
    return world.server.waiting()


WORK: Final[dict[str, Kind]] = {
    # The first ones are drawn far more often than their weight says: Hypothesis likes what is simple, and repeats it.
    "answer": Kind(12, (WHICH, FAR, THEN), _asked),
    "schedule": Kind(8, (PLACE, FAR, THEN)),
    "take_over": Kind(3, (PLACE, st.booleans())),
    "let_time_pass": Kind(4, (st.sampled_from([A_CLAIM, A_LEASE, A_CALL, A_MOMENT]),)),
    "restart": Kind(4, (FAR, THEN), lambda world: not all(process.alive for process in world.processes)),
    "thaw": Kind(3, (PLACE, FAR), lambda world: any(process.frozen for process in world.processes)),
    "go_on": Kind(3, (PLACE, FAR)),
    "import_pending": Kind(3, (), lambda world: any(customer.pending for customer in world.customers)),
    "refresh": Kind(2, (PLACE,)),
}
"""What is always possible, or else nothing would ever happen."""

HAZARDS: Final[dict[str, Kind]] = {
    "schedule_and_forget": Kind(1),
    "deliver_again": Kind(5, (WHICH, PLACE, st.booleans(), FAR), lambda world: world.desk.jobs),
    "keep_house": Kind(2, (PLACE, FAR)),
    "decide": Kind(4, (WHICH,), _asked),
    "lose_the_answer": Kind(4, (WHICH, FAR, THEN), _asked),
    "be_unavailable": Kind(1, (WHICH, FAR), _asked),
    "read_late": Kind(1, (WHICH,), lambda world: world.server.unread()),
    "kill": Kind(4, (PLACE, FAR)),
    "freeze": Kind(4, (PLACE, FAR)),
    "trouble_postgres": Kind(3, (PLACE, st.sampled_from(Trouble), FAR)),
    "flush_redis": Kind(2),
    "switch_redis": Kind(1),
    "lose_a_lease": Kind(2, (WHICH,), lambda world: world.leases()),
    "sign_in_again": Kind(3, (CUSTOMER,)),
    "reconnect": Kind(4, (CUSTOMER,), _asked),
    "import_again": Kind(1, (CUSTOMER,)),
    "revoke_at_the_provider": Kind(1, (CUSTOMER,)),
}
"""What a world may be spared: which of them, each world draws for itself."""


class Model(RuleBasedStateMachine):
    """A fleet under everything that may befall it. Subclasses name the stage and the provider."""

    stage: ClassVar[Stage]
    policy: ClassVar[Policy]

    def __init__(self) -> None:
        super().__init__()
        self.world: World = self.stage.new_world(self.policy)
        self.acts = Acts(self.world)
        self.judge = Judge(self.world)
        self.kinds = WORK | HAZARDS
        self.story: list[Act] = []

    @initialize(spared=st.sets(st.sampled_from(sorted(HAZARDS))))
    def begin(self, spared: set[str]) -> None:
        """Choose what this world is spared."""
        self.acts.spared = frozenset(spared)
        self.kinds = {name: kind for name, kind in (WORK | HAZARDS).items() if name not in spared}

    @rule(data=st.data())
    def happens(self, data: st.DataObject) -> None:
        """One of the actions that are possible now."""
        possible = [
            name for name, kind in self.kinds.items() if kind.possible(self.world) for _ in range(kind.weight)
        ]
        name = data.draw(st.sampled_from(possible))
        arguments = data.draw(st.tuples(*self.kinds[name].arguments), label=name)
        self.story.append((name, arguments))
        getattr(self.acts, name)(*arguments)

    @invariant()
    def promises_hold(self) -> None:
        """G2, G3, G4, G5."""
        self.judge.look()

    def teardown(self) -> None:
        """Give the fleet all the time it needs, and judge what it makes of it."""
        try:
            settle(self.world, self.judge)
        finally:
            self.world.close()


def settle(world: World, judge: Judge) -> None:
    """Let everybody finish, with nothing in the way, and judge the end."""
    world.redis_away = False
    for place, process in enumerate(world.processes):
        process.frozen = False
        process.troubles.clear()
        if not process.alive:
            world.restart(place)
    for customer in world.customers:
        if customer.pending:
            world.import_pending(customer)
    _finish(world, judge)
    world.pass_time(A_CLAIM)
    refreshed = judge.refreshes()
    trouble = ["nothing was tried"]
    for round_ in range(SETTLING_ROUNDS):
        world.tick()
        for job in world.desk.jobs[-1:]:
            world.processes[round_ % WORKERS].take(job)
        _finish(world, judge)
        trouble = judge.unsettled(refreshed)
        if not trouble:
            return
        world.pass_time(A_CLAIM)
    raise AssertionError(f"the fleet does not recover: {trouble}")


def _finish(world: World, judge: Judge) -> None:
    """Let everybody go on, and the provider answer all that it is asked."""
    world.run_all()
    while waiting := world.server.waiting():
        world.server.deliver(waiting[0])
        world.run_all()
        judge.look()
    world.pass_time(A_MOMENT)
    judge.look()


def _choose(options: Sequence[T], number: int) -> T:
    return options[number % len(options)]
