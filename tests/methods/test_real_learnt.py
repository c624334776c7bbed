"""Methods that learn, on the default model: after a few steps wanted texts are more likely when they are steered to."""

import pytest
import torch
from learning import likelihood

from harness.subject.load import Loaded
from harness.subject.local import LocalSubject
from harness.subject.scorers import open_subject
from harness.training import Training
from harness.types import Demonstration, Example, FitData, Method, Parameters
from methods.adapter import PostBlockAdapter
from methods.flas import FLAS
from methods.hypersteer import HyperSteer
from methods.lm_steer import LMSteer
from methods.loreft import LoReFT
from methods.probe import LinearProbe
from methods.ssv import SupervisedVector

SHORT = Training(epochs=4, batch_size=4, learning_rate=0.01)
METHODS = [
    LinearProbe(training=SHORT),
    SupervisedVector(training=SHORT),
    LoReFT(training=SHORT),
    LMSteer(training=SHORT),
    PostBlockAdapter(training=SHORT),
]
GENTLE = Training(epochs=4, batch_size=4, learning_rate=0.002)
NETWORKS = [FLAS(layer=20, training=GENTLE), HyperSteer(layer=20, training=GENTLE)]


@pytest.fixture(scope="module")
def smollm(default_model: Loaded) -> LocalSubject:
    return open_subject(default_model)


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_a_few_steps_make_wanted_texts_more_likely(smollm: LocalSubject, method: Method) -> None:
    positives = [Demonstration(f"say {i}", f" zzz{i}z") for i in range(8)]
    plain = [Demonstration(f"say {i}", f" The number is {i}.", wanted=False) for i in range(8)]
    artifact = method.fit(smollm, FitData(demonstrations=(*positives, *plain)))
    assert likelihood(smollm, method, artifact, "z", 1.0) > likelihood(smollm, method, artifact, "z", 0.0) + 0.5


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("method", NETWORKS, ids=lambda method: type(method).__name__)
def test_a_few_steps_teach_a_network_what_a_concept_is(smollm: LocalSubject, method: Method) -> None:
    concept = "words made of the letter z"
    wanted = [Demonstration(f"say {i}", f" zzz{i}z", concept) for i in range(8)]
    artifact = method.fit(smollm, FitData(demonstrations=tuple(wanted)))
    condition = method.condition(smollm, artifact, [Example("1", "?", concept=concept)])

    def likely(parameters: Parameters | None) -> float:
        assert parameters is not None
        tensors = {name: torch.tensor([value]) for name, value in parameters.items()}
        steered = method.intervention(artifact, condition, tensors)
        (found,) = smollm.loglikelihood(["say 9"], [" zzz9z"], intervention=steered)
        return float(found.sum())

    assert likely(method.defaults(smollm.layout)) > likely(method.null(smollm.layout)) + 0.5
