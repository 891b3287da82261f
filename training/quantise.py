"""8-bit weights: for ONNX Runtime, for OpenVINO, and for a browser. Nothing to run here; export.py does."""

import contextlib
import io
import logging
from pathlib import Path

import numpy as np

from answering.telemetry import turn_off_telemetry
from training.portable import lower_pools

PRODUCTS = ["MatMul", "Gemm"]  # operations of a transformer that multiply by weights


def head_nodes(model) -> list[str]:
    """Names of the nodes behind the embedding of an onnx.ModelProto: head, probabilities and known stay in float."""
    values = {"embedding"}
    names = []
    for node in model.graph.node:  # in topological order
        if values & set(node.input):
            values |= set(node.output)
            names.append(node.name)
    return names


def quantise(model, frames: np.ndarray, *, transformer: bool, depthwise: bool, keep: list[str]):
    """int8 by NNCF of an OpenVINO model, calibrated on frames uint8 [N, S, S, 3].

    Weights have 7 bits: CPUs without VNNI add pairs of products in 16 bits, which saturate with 8. Activations keep
    their whole range: NNCF's mean over frames clips, and puts ResNet-50's logits off by 19% instead of 3%, DINOv2's by
    8% instead of 6%. The few weights of depthwise layers drift: their biases must make up for it (Nagel 2019). keep:
    names of nodes that stay in float.
    """
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # nncf wakes it, and it looks for CUDA
    turn_off_telemetry()
    import nncf

    logging.getLogger("nncf").setLevel(logging.ERROR)
    from nncf.quantization.advanced_parameters import OverflowFix
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    advanced = nncf.AdvancedQuantizationParameters(overflow_fix=OverflowFix.ENABLE)
    advanced.activations_range_estimator_params = RangeEstimatorParametersSet.MINMAX
    if transformer:
        advanced.smooth_quant_alphas = nncf.AdvancedSmoothQuantParameters(matmul=0.5, convolution=-1)
    options = {
        "preset": nncf.QuantizationPreset.MIXED,
        "subset_size": len(frames),
        "model_type": nncf.ModelType.TRANSFORMER if transformer else None,
        "ignored_scope": nncf.IgnoredScope(patterns=[f"{name}(/.*)?" for name in keep], validate=False),
        "advanced_parameters": advanced,
    }
    data = nncf.Dataset(list(frames[:, None]))  # in batches of one
    with contextlib.redirect_stdout(io.StringIO()):
        return nncf.quantize(model, data, **options, fast_bias_correction=transformer or not depthwise)


def write_int8(fp32: Path, onnx_path: Path, openvino_path: Path, sample: np.ndarray | None, transformer: bool) -> None:
    """int8 for ONNX Runtime, quantised by its own tools, and for OpenVINO; without a sample only what needs none.

    sample: frames uint8 [N, S, S, 3] to calibrate with. A transformer's file for ONNX Runtime needs none.
    """
    import onnx

    prepared_path = fp32.with_suffix(".prepared.onnx")
    with quiet_root_logger():
        prepare(fp32, prepared_path)
        prepared = onnx.load(prepared_path)
        keep = head_nodes(prepared)
        if transformer:
            write_dynamic(prepared_path, onnx_path, keep)
        elif sample is not None:
            write_static(prepared_path, onnx_path, keep, sample)
    prepared_path.unlink()
    if sample is None:
        return
    convolutions = [node for node in prepared.graph.node if node.op_type == "Conv"]
    if transformer:
        # patches and first block, one in fifteen products, make a third of the error of int8
        products = [node.name for node in onnx.load(fp32).graph.node if node.op_type in PRODUCTS]
        keep = [*keep, *(node.name for node in convolutions[:1]), *products[:6]]
    depthwise = any(item.name == "group" and item.i > 1 for node in convolutions for item in node.attribute)
    write_openvino(fp32, openvino_path, sample, transformer=transformer, depthwise=depthwise, keep=keep)


@contextlib.contextmanager
def quiet_root_logger():
    """ONNX Runtime's tools log through the root logger."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)


def prepare(fp32: Path, path: Path) -> None:
    """Fold and name what ONNX Runtime's quantisation asks for."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    quant_pre_process(str(fp32), str(path), skip_symbolic_shape=True)


def write_dynamic(prepared: Path, path: Path, keep: list[str]) -> None:
    """Products by weights in 7 bits, activations in 8 with a scale that is found at run time. keep: nodes in float."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        prepared,
        path,
        per_channel=True,
        weight_type=QuantType.QInt8,
        reduce_range=True,
        op_types_to_quantize=PRODUCTS,
        nodes_to_exclude=keep,
    )


def write_static(prepared: Path, path: Path, keep: list[str], sample: np.ndarray) -> None:
    """Convolutions and what lies between in 8 bits, with scales from the sample. keep: nodes in float."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Frames(CalibrationDataReader):
        def __init__(self):
            self.frames = iter(sample)

        def get_next(self) -> dict | None:
            return next(({"image": frame[None]} for frame in self.frames), None)

    quantize_static(
        prepared,
        path,
        Frames(),
        per_channel=True,
        weight_type=QuantType.QInt8,  # in 8 bits: 7 put MobileNetV2 off by 25% instead of 16%
        activation_type=QuantType.QUInt8,
        op_types_to_quantize=["Conv", "Gemm", "Add", "Clip", "Relu"],
        nodes_to_exclude=keep,
    )


def write_openvino(
    fp32: Path, path: Path, sample: np.ndarray, *, transformer: bool, depthwise: bool, keep: list[str]
) -> None:
    """What quantise makes of an .onnx in float, as an .xml and its .bin."""
    turn_off_telemetry()
    import openvino

    model = openvino.convert_model(fp32)
    lower_pools(model)
    model = quantise(model, sample, transformer=transformer, depthwise=depthwise, keep=keep)
    path.parent.mkdir(exist_ok=True)
    openvino.save_model(model, path, compress_to_fp16=False)


# ------------------------------------------------------------------------------------------------ a browser


def fuse_gelu(model) -> None:
    """GELU, of an onnx.ModelProto, by tanh in one node."""
    from onnxruntime.transformers.fusion_gelu import FusionGelu
    from onnxruntime.transformers.onnx_model import OnnxModel

    fused = OnnxModel(model)
    FusionGelu(fused).apply()
    fused.topological_sort()
    for node in model.graph.node:
        if (node.domain, node.op_type) == ("com.microsoft", "Gelu"):
            node.op_type = "FastGelu"


def scale_product(node) -> list:
    """The nodes that divide each token by its largest number, multiply by the weights, and multiply by that number.

    node: a MatMul of tokens by weights, which is among them then.
    """
    from onnx import helper

    tokens = node.input[0]
    result = node.output[0]
    size = f"{node.name}_size"
    largest = f"{node.name}_most"
    scale = f"{node.name}_scale"
    scaled = f"{node.name}_even"
    product = f"{node.name}_product"
    node.input[0] = scaled
    node.output[0] = product
    return [
        helper.make_node("Abs", [tokens], [size], size),
        helper.make_node("ReduceMax", [size, "last_axis"], [largest], largest, keepdims=1),
        helper.make_node("Max", [largest, "least"], [scale], scale),
        helper.make_node("Div", [tokens, scale], [scaled], scaled),
        node,
        helper.make_node("Mul", [product, scale], [result], f"{node.name}_result"),
    ]


def scale_tokens(model) -> list[str]:
    """Prepare a transformer, an onnx.ModelProto in float, for products in 8 bits; gives the products' names, in order.

    It computes the same, but for GELU, by tanh in one node: what is multiplied by weights is divided token by token by
    its largest number, since some tokens have a hundred times what others have and all get one scale.
    """
    from onnx import numpy_helper

    fuse_gelu(model)
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    head = head_nodes(model)
    graph.initializer.append(numpy_helper.from_array(np.array([-1]), "last_axis"))
    graph.initializer.append(numpy_helper.from_array(np.float32(1e-3), "least"))
    nodes = []
    products = []
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in weights and node.name not in head:
            nodes += scale_product(node)
            products.append(node.name)
        else:
            nodes.append(node)
    replace_nodes(graph, nodes)
    return products


def replace_nodes(graph, nodes: list) -> None:
    del graph.node[:]
    graph.node.extend(nodes)


def write_web(fp32: Path, path: Path, transformer: bool) -> None:
    """The .onnx that one thread of WebAssembly runs best (`bench.py web`): small, and nothing slower than float.

    A transformer multiplies in 8 bits, which takes half the time. Of a convolutional network only the weights are kept
    in 8 bits and computed with in float: 8-bit convolutions are slower there.
    """
    if transformer:
        write_web_transformer(fp32, path)
    else:
        write_web_convolutions(fp32, path)


def write_web_transformer(fp32: Path, path: Path) -> None:
    """Products in 8 bits. Weights are unsigned, so that no CPU's sums saturate, and have all 8 bits."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    prepare(fp32, path)
    model = onnx.load(path)
    # the first block's third product, one of 48, makes a fifth of the error (DINOv2-S)
    keep = head_nodes(model) + scale_tokens(model)[2:3]
    onnx.save(model, path)
    quantize_dynamic(
        path,
        path,
        per_channel=True,
        weight_type=QuantType.QUInt8,
        extra_options={"WeightSymmetric": True},
        op_types_to_quantize=PRODUCTS,
        nodes_to_exclude=keep,
    )


def write_web_convolutions(fp32: Path, path: Path) -> None:
    """Weights of convolutions in 8 bits with a scale a filter, turned back into float when the file is loaded."""
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(fp32)
    graph = model.graph
    weights = {node.input[1] for node in graph.node if node.op_type == "Conv"}
    nodes = []
    for tensor in list(graph.initializer):
        if tensor.name not in weights:
            continue
        name = tensor.name
        values = numpy_helper.to_array(tensor)
        scale = np.abs(values).max(axis=(1, 2, 3)).clip(1e-12) / 127
        rounded = np.round(values / scale[:, None, None, None]).astype(np.int8)
        tensor.CopyFrom(numpy_helper.from_array(rounded, f"{name}_int8"))
        graph.initializer.append(numpy_helper.from_array(scale, f"{name}_scale"))
        inputs = [f"{name}_int8", f"{name}_scale"]
        nodes.append(helper.make_node("DequantizeLinear", inputs, [name], f"{name}_scaled", axis=0))
    replace_nodes(graph, [*nodes, *graph.node])
    onnx.save(model, path)
