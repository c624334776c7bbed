"""Steering target atoms: scores by hand, planted features, lengths, and the authors' values."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from learning import Given, shown

from harness.sparse import Dictionary
from harness.subject.load import ModelConfig, load_model
from harness.subject.scorers import open_subject
from harness.training import Training
from harness.types import FitData, Layout
from methods.sta import TargetAtoms

Arrays = Mapping[str, np.ndarray]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture
def arrays(golden: Callable[[str], Arrays]) -> Arrays:
    return golden("sae")


def test_atoms_by_hand() -> None:
    # Feature 0 is stronger and more frequent, 1 stronger but rarer, 2 weaker and rarer, 3 and 4 do not differ.
    positive = torch.tensor([[4.0, 9.0, 0.0, 1.0, 0.0], [4.0, 0.0, 1.0, 1.0, 0.0]])
    others = torch.tensor([[0.0, 1.0, 3.0, 1.0, 0.0], [0.0, 1.0, 3.0, 1.0, 0.0]])
    amplitude, kept = TargetAtoms(kept=0.3).atoms(positive, others)
    assert amplitude.tolist() == [4.0, 3.5, -2.5, 0.0, 0.0]
    assert kept.tolist() == [True, False, False, False, False]

    assert TargetAtoms(kept=0.3, score="amplitude").atoms(positive, others)[1].tolist() == [
        True,
        True,
        False,
        False,
        False,
    ]
    assert TargetAtoms(kept=0.3, score="frequency").atoms(positive, others)[1].tolist() == [
        True,
        False,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize("trim", ["35", "10"])
@pytest.mark.parametrize("score", ["both", "amplitude", "frequency"])
def test_vectors_agree_with_the_authors(tmp_path: Path, arrays: Arrays, score: str, trim: str) -> None:
    np.savez(tmp_path / "params.npz", **{n: arrays[n] for n in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")})
    states = np.concatenate([arrays["sta_pos_states"], arrays["sta_neg_states"]])
    lengths = np.concatenate([arrays["sta_pos_length"], arrays["sta_neg_length"]])
    prompts = np.tile(arrays["sta_prompt_length"], 2)
    subject = Given(states, lengths, 0, prompts)
    texts = tuple(Given.text(row, row < len(lengths) // 2) for row in range(len(lengths)))

    dictionary = Dictionary(path=str(tmp_path / "params.npz"))
    method = TargetAtoms(score=score, kept=int(trim) / 100, dictionary=dictionary)  # pyright: ignore
    artifact = method.fit(subject, FitData(demonstrations=texts))
    name = {"both": "both", "amplitude": "act", "frequency": "freq"}[score]
    torch.testing.assert_close(artifact["vector"][0], torch.from_numpy(arrays[f"sta_v_{name}_trim{trim}"]), **CLOSE)
    row = ["both", "amplitude", "frequency"].index(score)
    assert artifact["kept"][0].tolist() == arrays[f"sta_kept_trim{trim}"][row].tolist()


def test_each_group_has_a_vector_which_may_have_the_length_of_the_states_difference() -> None:
    subject = open_subject(load_model(ModelConfig(kind="tiny", family="llama", device="cpu", dtype="float64")))
    data = FitData(demonstrations=tuple(shown("a", "z") + shown("b", "q")))
    dictionary = Dictionary(features=32, training=Training(epochs=2, batch_size=16))
    decoded, stretched = (
        TargetAtoms(layer=1, length=length, dictionary=dictionary).fit(subject, data)  # pyright: ignore
        for length in ("decoded", "states")
    )
    assert not torch.allclose(decoded["vector"][0], decoded["vector"][1], atol=1e-3)
    cosine = torch.nn.functional.cosine_similarity(decoded["vector"], stretched["vector"])
    torch.testing.assert_close(cosine, torch.ones(2))
    assert not torch.allclose(decoded["vector"], stretched["vector"], rtol=0.01)


def test_wrong_settings_are_refused() -> None:
    layout = Layout(num_layers=4, width=8, num_heads=1, head_width=8)
    with pytest.raises(ValueError, match="kept must be between 0 and 1, got 1"):
        TargetAtoms(kept=1.0).check(layout)
    with pytest.raises(ValueError, match="score must be one of both, amplitude, frequency, got 'act'"):
        TargetAtoms(score="act").check(layout)  # pyright: ignore[reportArgumentType]
