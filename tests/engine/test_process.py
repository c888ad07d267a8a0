"""ppo_fast.engine.process: the device, threads and how products run."""

import warnings
from collections.abc import Iterator

import pytest
import torch

from ppo_fast.engine import process
from ppo_fast.engine.process import fast_products_are_exact, prepare, versions, with_products, with_threads
from ppo_fast.train import Args

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def settings_come_back() -> Iterator[None]:
    """What `prepare` sets for a whole process."""
    products = torch.get_float32_matmul_precision()
    deterministic = torch.backends.cudnn.deterministic
    reduction = torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
    threads = torch.get_num_threads()
    with warnings.catch_warnings():
        yield
    torch.set_float32_matmul_precision(products)
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = reduction
    torch.set_num_threads(threads)


def test_a_cpu_where_there_is_no_card_or_none_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert prepare(Args(cuda=True)) == prepare(Args(cuda=False)) == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert prepare(Args(cuda=False)) == CPU


@pytest.mark.parametrize(("precision", "products"), [("fp32", "highest"), ("bf16", "highest"), ("tf32", "high")])
def test_a_card_with_the_products_that_are_asked_for(
    monkeypatch: pytest.MonkeyPatch, precision: str, products: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert prepare(Args(cuda=True, precision=precision)) == torch.device("cuda", 0)  # pyright: ignore[reportArgumentType]
    assert torch.get_float32_matmul_precision() == products
    assert not torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert prepare(Args(cuda=True)) == torch.device("cuda", 3)


def test_a_cpu_has_no_tf32() -> None:
    with pytest.raises(ValueError, match=r"^--precision: tf32 needs a CUDA device; fp32 and bf16 run on a CPU$"):
        prepare(Args(cuda=False, precision="tf32"))


@pytest.mark.parametrize("wanted", [True, False])
def test_deterministic_kernels_if_they_are_asked_for(wanted: bool) -> None:
    prepare(Args(cuda=False, torch_deterministic=wanted))
    assert torch.backends.cudnn.deterministic == wanted


def test_a_c_library_without_mallopt_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as musl."""
    monkeypatch.setattr(process.ctypes, "CDLL", lambda name: object())
    assert prepare(Args(cuda=False)) == CPU


def test_settings_hold_within_a_function_and_not_after_it() -> None:
    torch.set_num_threads(3)
    torch.set_float32_matmul_precision("high")

    def look(*args: int) -> tuple[int, str, tuple[int, ...]]:
        """What it says."""
        return torch.get_num_threads(), torch.get_float32_matmul_precision(), args

    inside = with_threads(with_products(look, "medium"), 2)
    assert inside(1, 2) == (2, "medium", (1, 2)) and inside.__doc__ == look.__doc__
    assert look() == (3, "high", ())

    def fail() -> None:
        raise ValueError

    with pytest.raises(ValueError):
        with_threads(with_products(fail, "highest"), 1)()
    assert look() == (3, "high", ())


@pytest.mark.parametrize("error", [0.0, 1e-3])
def test_fast_products_are_tried(monkeypatch: pytest.MonkeyPatch, error: float) -> None:
    """A CPU with bf16 units computes "medium" products with them, which is no rounding of float32."""
    matmul, settings = torch.matmul, []

    def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        settings.append(torch.get_float32_matmul_precision())
        return matmul(a.double(), b.double()).float() * (1 + error)

    monkeypatch.setattr(torch, "matmul", product)
    torch.set_float32_matmul_precision("high")
    assert fast_products_are_exact() == (error == 0.0)
    assert settings == ["medium"] and torch.get_float32_matmul_precision() == "high"


def test_what_a_result_depends_on() -> None:
    found = versions(CPU, cuda=False)
    assert set(found["versions"]) == {"python", "torch", "numpy", "gymnasium"}
    assert found["versions"]["torch"] == torch.__version__
    assert (found["device"], found["threads"]) == ("cpu", torch.get_num_threads())
    assert found["device_in_words"] == f"cpu ({torch.get_num_threads()} threads)"
    assert versions(CPU, cuda=True)["device_in_words"].endswith("threads; no CUDA device found)")
