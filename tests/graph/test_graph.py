from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

from fxcompress.capture import capture
from fxcompress.errors import FxCompressError
from fxcompress.graph.captured import CapturedModule, aten, clone_graph, mode_of
from fxcompress.graph.metadata import dtype_of, dynamic_dims, is_tensor, parameter_of, shape_of
from fxcompress.graph.parameters import find_tensor, set_tensor, tensor_of
from models import MODELS


class Moody(nn.Module):
    """Everything that differs between training and evaluation, and two things that do not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 1)
        self.norm = nn.BatchNorm2d(6)
        self.batch_statistics = nn.BatchNorm2d(6, track_running_stats=False)
        self.instance = nn.InstanceNorm2d(6, track_running_stats=True)
        self.drop, self.drop_maps = nn.Dropout(0.3), nn.Dropout2d(0.3)
        self.slope = nn.RReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.slope(self.norm(self.conv(x)))
        x = self.drop_maps(self.drop(self.instance(self.batch_statistics(x))))
        return nn.functional.dropout(x, 0.1, training=True)


class Creator(nn.Module):
    """Makes a tensor on the device of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        noise = torch.zeros(x.shape[0], 4, device=x.device, dtype=x.dtype)
        return self.linear(x) + noise  # type: ignore[no-any-return]


def captured(name: str) -> CapturedModule:
    model, args, kwargs = MODELS[name]()
    return capture(model, args, kwargs).module


def moody() -> CapturedModule:
    return capture(Moody(), (torch.randn(2, 3, 4, 4),)).module


def modes(module: CapturedModule) -> dict[str, bool]:
    flags = {str(node): mode_of(node) for node in module.graph.nodes}
    return {name: flag for name, flag in flags.items() if flag is not None}


FIXED = {"batch_norm_1": True, "dropout_1": True}


def test_training_and_evaluation_flip_every_node_that_follows_the_mode() -> None:
    module = moody()
    following = set(modes(module)) - set(FIXED)
    assert len(following) == 5
    for mode in (True, False, True):
        module.train(mode)
        assert module.training is mode
        assert modes(module) == dict.fromkeys(following, mode) | FIXED


def test_training_changes_statistics_and_evaluation_does_not() -> None:
    module, x = captured("reused_module"), torch.randn(6, 5)
    mean = module.get_buffer("norm.running_mean").clone()
    module.eval()(x)
    assert torch.equal(mean, module.get_buffer("norm.running_mean"))
    module.train()(x)
    assert not torch.equal(mean, module.get_buffer("norm.running_mean"))


def test_the_code_is_generated_anew_only_when_a_mode_changes() -> None:
    module = moody()
    forward = type(module).forward
    module.eval()
    assert type(module).forward is forward
    module.train()
    assert type(module).forward is not forward


def test_moving_the_module_moves_the_tensors_it_creates() -> None:
    module = capture(Creator(), (torch.randn(2, 4),)).module
    there = copy.deepcopy(module).to("meta")
    assert there(torch.randn(3, 4, device="meta")).device.type == "meta"
    assert module(torch.randn(3, 4)).device.type == "cpu"


@pytest.mark.gpu
def test_a_gpu_gives_the_same_output() -> None:
    module, x = capture(Creator(), (torch.randn(2, 4),)).module, torch.randn(3, 4)
    torch.testing.assert_close(copy.deepcopy(module).cuda()(x.cuda()).cpu(), module(x))


def test_conversion_of_the_dtype_reaches_every_parameter() -> None:
    module = captured("fused_attention").double()
    assert module(torch.randn(3, 7, 5, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("name", ["padded_residual", "tied_language_model", "many_inputs"])
@pytest.mark.parametrize("copied", [copy.deepcopy, clone_graph], ids=["deepcopy", "clone_graph"])
def test_a_copy_computes_the_same_and_shares_no_graph(
    name: str, copied: Callable[[CapturedModule], CapturedModule]
) -> None:
    model, args, kwargs = MODELS[name]()
    module = capture(model, args, kwargs).module
    twin = copied(module)
    assert isinstance(twin, CapturedModule)
    assert [str(node) for node in twin.graph.nodes] == [str(node) for node in module.graph.nodes]
    assert [n.meta for n in twin.graph.nodes] == [n.meta for n in module.graph.nodes]
    assert list(twin.state_dict()) == list(module.state_dict())
    torch.testing.assert_close(twin(*args, **kwargs), module(*args, **kwargs), rtol=0, atol=0)
    for node in twin.graph.find_nodes(op="output"):
        twin.graph.erase_node(node)
    assert module.graph.output_node() is not None


def test_a_clone_shares_tensors_and_a_deepcopy_does_not() -> None:
    module = captured("conv_chain")
    for name, value in module.state_dict(keep_vars=True).items():
        assert find_tensor(clone_graph(module), name) is value
        assert find_tensor(copy.deepcopy(module), name) is not value


def test_registering_in_a_clone_leaves_the_original_alone() -> None:
    module = captured("conv_chain")
    names = list(module.state_dict())
    clone = clone_graph(module)
    set_tensor(clone, names[0].replace("weight", "extra"), torch.ones(1))
    set_tensor(clone, names[0], nn.Parameter(torch.ones(1)))
    assert list(module.state_dict()) == names
    assert find_tensor(module, names[0]) is not find_tensor(clone, names[0])


def test_deepcopy_keeps_tied_parameters_tied_and_buffers_not_persistent() -> None:
    module = captured("tied_language_model")
    set_tensor(module, "_table", torch.ones(2), persistent=False)
    twin = copy.deepcopy(module)
    assert list(twin.state_dict()) == list(module.state_dict())
    assert "_table" in dict(twin.named_buffers())
    assert len(list(twin.parameters())) == len(list(module.parameters()))


def test_a_submodule_in_the_graph_is_copied_with_its_parameters() -> None:
    module = captured("mlp")
    module.add_module("mask", nn.Linear(3, 3))
    output = module.graph.output_node()
    result = output.all_input_nodes[0]
    with module.graph.inserting_before(output):
        called = module.graph.call_module("mask", (result,))
    output.replace_input_with(result, called)
    module.recompile()
    x = torch.randn(2, 5)
    clone, twin = clone_graph(module), copy.deepcopy(module)
    assert clone.get_parameter("mask.weight") is module.get_parameter("mask.weight")
    assert twin.get_parameter("mask.weight") is not module.get_parameter("mask.weight")
    assert torch.equal(clone(x), module(x))
    assert torch.equal(twin(x), module(x))


def test_shapes_are_those_of_the_example_and_free_axes_are_told() -> None:
    module = captured("fused_attention")
    (x,) = module.graph.find_nodes(op="placeholder")
    assert shape_of(x) == (2, 7, 5)
    assert dynamic_dims(x) == {0}
    assert dtype_of(x) == torch.float32
    for node in module.graph.nodes:
        if parameter_of(node):
            assert shape_of(node) == tensor_of(module, node).shape
            assert dynamic_dims(node) == frozenset()


def test_a_node_without_one_tensor_says_so() -> None:
    module = captured("chunked_attention")
    output: fx.Node = module.graph.output_node()
    assert not is_tensor(output)
    with pytest.raises(FxCompressError, match=r"'output'.*is_tensor"):
        shape_of(output)
    (x,) = module.graph.find_nodes(op="placeholder")
    with pytest.raises(FxCompressError, match="reads no parameter"):
        tensor_of(module, x)
    assert parameter_of(x) is None


def test_a_parameter_stays_a_parameter_under_a_dotted_name() -> None:
    module = nn.Module()
    weight = nn.Parameter(torch.ones(2))
    set_tensor(module, "a.b.weight", weight)
    set_tensor(module, "a.b.table", torch.ones(3))
    assert dict(module.named_parameters())["a.b.weight"] is weight
    assert list(module.state_dict()) == ["a.b.weight", "a.b.table"]
    set_tensor(module, "a.b.weight", torch.zeros(2))
    assert not list(module.parameters())
    assert find_tensor(module, "a.c.weight") is None


def test_the_flag_of_an_operator_that_left_it_out_is_filled_in() -> None:
    module = captured("mlp")
    relu = next(iter(module.graph.find_nodes(op="call_function", target=aten.relu.default)))
    relu.target = aten.rrelu.default
    module.train()
    assert relu.args[1:] == (0.125, 1 / 3, True)
