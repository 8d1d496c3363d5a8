"""Dense peers: built apart, timed in turns with the model, held to its outputs."""

from __future__ import annotations

import pickle

import pytest
import torch
from support.stand_in_peer import Doubled
from support.tiny_models import tiny_model
from torch.nn import functional as F

from secateurs.errors import BackendError
from secateurs.measurement.peers import PEERS, Peer, against_stock, apart, installed, peer_in
from secateurs.measurement.peers.against_stock import figures_of_peer
from secateurs.measurement.peers.apart import SETTLE, Apart, Order, bare, in_turns

STATES = {"states": torch.arange(3.0)}


def stand_in(does: str | None = None, *packages: str) -> Peer:
    return Peer("stand-in", "support.stand_in_peer", packages, does)


def order() -> Order:
    return Order(Doubled(), STATES, [STATES] * 5, threads=2)


def test_a_peer_runs_in_a_process_of_its_own(capfd):
    with Apart(stand_in(), order()) as peer:
        with pytest.raises(BackendError, match=r"run the model, got .*other"):
            peer(other=torch.ones(1))
        (answer,) = peer(states=torch.tensor([1.5, 2.0], dtype=torch.bfloat16))
        assert torch.equal(answer, torch.tensor([3.0, 4.0]))
        assert peer.sample() > 0
    assert capfd.readouterr() == ("", "")


def test_a_peer_has_the_threads_and_the_examples_of_its_order():
    with Apart(stand_in("counts"), order()) as peer:
        assert peer(states=torch.ones(1))[0].tolist() == [2, 5]


@pytest.mark.parametrize(
    ("does", "told"),
    [("raises", "got no such operator$"), ("ends", "got a process that ended without an answer$")],
)
def test_a_peer_that_cannot_be_built_is_told_in_one_line(does, told):
    with pytest.raises(BackendError, match=f"expected stand-in to run the model, {told}"):
        Apart(stand_in(does), order())


def test_a_model_that_cannot_be_sent_is_refused():
    model = Doubled()
    model.hook = lambda: None
    with pytest.raises(BackendError, match=r"run the model, got .*lambda"):
        Apart(stand_in(), Order(model, STATES, [], 1))


def test_a_model_that_was_asked_for_its_states_is_sent_without_hooks():
    model = tiny_model("bert").eval()
    ids = {"input_ids": torch.arange(6)[None]}
    states = model(**ids, output_hidden_states=True).hidden_states
    sent = bare(model)
    assert len(states) == len(model(**ids, output_hidden_states=True).hidden_states)
    assert next(sent.parameters()) is next(model.parameters())
    received = pickle.loads(pickle.dumps(sent))
    assert torch.equal(received(**ids).last_hidden_state, states[-1])


def test_a_peer_is_installed_when_all_of_its_packages_are(monkeypatch):
    packages = {"a": (), "b": ("torch", "no_such_package"), "c": ("torch",)}
    rows = {name: stand_in(None, *each) for name, each in packages.items()}
    monkeypatch.setattr("secateurs.measurement.peers.PEERS", rows)
    assert installed() == ["a", "c"]


def test_a_row_of_another_precision_is_found_by_its_runtime():
    assert peer_in("openvino", None) is PEERS["openvino"]
    assert peer_in("openvino", "int8") is PEERS["openvino-int8"]
    with pytest.raises(BackendError, match="got compiled-int8"):
        peer_in("compiled", "int8")


class Clock:
    """A peer and the model's sampler that tell whose turn it is."""

    def __init__(self, monkeypatch) -> None:
        self.turns: list[str] = []
        self.settled: list[float] = []
        monkeypatch.setattr(apart, "sampler", self.sampler)

    def sample(self) -> float:
        self.turns.append("peer")
        return 1.0

    def sampler(self, call, device, settle):
        self.settled.append(settle)
        call()
        return lambda: self.turns.append("model") or 2.0


def test_peer_and_model_take_turns_and_let_each_other_settle(monkeypatch):
    clock, called = Clock(monkeypatch), []
    samples = in_turns(
        clock, lambda **inputs: called.append(inputs), STATES, min_repeats=3, min_time=0.0
    )
    assert samples == [[1.0] * 3, [2.0] * 3]
    assert clock.turns == ["peer", "model", "model", "peer", "peer", "model"]
    assert clock.settled == [SETTLE]
    assert called == [STATES]


class Beside:
    """Stands in for `Apart`: another model, in this process."""

    def __init__(self, model) -> None:
        self.model, self.orders = model, []

    def __call__(self, peer: Peer, order: Order) -> Beside:
        self.orders.append(order)
        return self

    def __enter__(self):
        return lambda **inputs: (self.model(**inputs).last_hidden_state,)

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def measured(monkeypatch):
    """Has peers be another model, timed as their shapes say."""

    def beside(other) -> Beside:
        peers = Beside(other)
        monkeypatch.setattr(against_stock, "Apart", peers)
        return peers

    def times(peer, model, inputs, **_):
        examples = float(len(inputs["input_ids"]))
        return [[examples, examples + 1, examples + 2], [10 * examples] * 3]

    monkeypatch.setattr(against_stock, "in_turns", times)
    return beside


def test_times_are_weighted_over_the_shapes(measured):
    model = tiny_model("bert").train()
    peers = measured(tiny_model("bert"))
    figures = figures_of_peer(stand_in(), model, {(1, 4): 0.75, (3, 8): 0.25})
    assert figures.ms == 0.75 * 2 + 0.25 * 4
    assert figures.stock == 0.75 * 10 + 0.25 * 30
    assert figures.spread == pytest.approx(1.2)
    assert figures.speedup == figures.stock / figures.ms
    assert figures.cosine == 1.0
    assert [each.inputs["input_ids"].shape for each in peers.orders] == [(1, 4), (3, 8)]
    assert model.training


def test_a_peer_that_gives_other_outputs_than_the_model_is_refused(measured):
    model = tiny_model("bert")

    def unmasked(input_ids, attention_mask):
        return model(input_ids=input_ids)

    measured(unmasked)
    with pytest.raises(BackendError, match="give the outputs of the model, got a relative dist"):
        figures_of_peer(stand_in(), model, {(2, 8): 1.0})


def test_the_cosine_of_int8_is_that_of_each_text_cut_or_padded_to_the_shape(measured):
    model, other = tiny_model("bert"), tiny_model("bert")
    with torch.no_grad():
        other.encoder.layer[0].attention.self.query.weight.neg_()
    peers = measured(other)
    texts = [[5, 6, 7, 8, 9], [4, 3], [2, 8, 6]]
    ids = torch.tensor([text + [0] * (5 - len(text)) for text in texts])
    batch = {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": torch.ones(3)}
    batch["token_type_ids"] = torch.zeros_like(ids)
    figures = figures_of_peer(
        stand_in("int8"), model, {(2, 4): 1.0}, fitted=[batch], judged=[batch]
    )

    def mean(judged, text):
        with torch.no_grad():
            return judged(input_ids=torch.tensor([text[:4]])).last_hidden_state.double().mean(1)

    cosines = [F.cosine_similarity(mean(model, text), mean(other, text)) for text in texts]
    assert max(cosines) < 1 - 1e-4
    assert figures.cosine == pytest.approx(float(torch.cat(cosines).mean()), abs=1e-7)
    (sent,) = peers.orders
    assert [example["input_ids"].tolist() for example in sent.calibration] == [[t] for t in texts]


@pytest.mark.parametrize(
    ("batches", "told"),
    [
        ([], "expected examples to judge what int8 gives, got none"),
        (
            [{"input_ids": torch.ones(1, 2), "token_type_ids": torch.ones(1, 2)}],
            "got token_type_ids",
        ),
        ([{"pixel_values": torch.ones(1, 3, 8, 8)}], "got pixel_values"),
    ],
)
def test_int8_is_judged_on_texts_alone(measured, batches, told):
    measured(tiny_model("bert"))
    with pytest.raises(BackendError, match=told):
        figures_of_peer(
            stand_in("int8"), tiny_model("bert"), {(1, 2): 1.0}, fitted=batches, judged=batches
        )


def test_a_model_elsewhere_than_on_the_cpu_has_no_peers():
    with pytest.raises(BackendError, match="on the CPU for stand-in, got one on meta"):
        figures_of_peer(stand_in(), tiny_model("bert").to("meta"), {(1, 2): 1.0})


@pytest.mark.parametrize("name", [name for name, peer in PEERS.items() if peer.packages])
def test_every_runtime_that_is_installed_gives_what_the_model_does(name):
    peer = PEERS[name]
    for package in peer.packages:
        pytest.importorskip(package)
    random = torch.Generator().manual_seed(0)
    texts = [{"input_ids": torch.randint(3, 100, (4, 7), generator=random)} for _ in range(2)]
    found = figures_of_peer(
        peer,
        tiny_model("bert").eval(),
        {(2, 9): 0.5, (1, 5): 0.5},
        fitted=texts[:1],
        judged=texts[1:],
        min_repeats=1,
        min_time=0.0,
    )
    assert found.ms > 0
    assert found.stock > 0
    assert found.cosine > (0.9 if peer.precision else 0.999)
