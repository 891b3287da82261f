"""8-bit weights: for ONNX Runtime, for OpenVINO, and for a browser. Nothing to run here; export.py does."""

import contextlib
import io
import logging
from pathlib import Path

import numpy as np


def head_nodes(model) -> list[str]:
    """Names of the nodes behind the embedding of an onnx.ModelProto: head, probabilities and known stay in float."""
    seen, names = {"embedding"}, []
    for node in model.graph.node:  # in topological order
        if seen & set(node.input):
            seen |= set(node.output)
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
    data = nncf.Dataset(list(frames[:, None]))
    with contextlib.redirect_stdout(io.StringIO()):
        return nncf.quantize(model, data, **options, fast_bias_correction=transformer or not depthwise)


def write_int8(fp32: Path, onnx_path: Path, openvino_path: Path, sample: np.ndarray | None, transformer: bool) -> None:
    """int8 by ONNX Runtime, which runs its own best, and for OpenVINO; without a sample only what needs none."""
    import onnx
    import openvino
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Frames(CalibrationDataReader):
        def __init__(self):
            self.rows = iter(sample)

        def get_next(self) -> dict | None:
            return next(({"image": row[None]} for row in self.rows), None)

    prepared, root = fp32.with_suffix(".prepared.onnx"), logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it logs through the root logger
    quant_pre_process(str(fp32), str(prepared), skip_symbolic_shape=True)
    model = onnx.load(prepared)
    keep, options = head_nodes(model), {"per_channel": True, "weight_type": QuantType.QInt8}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    if transformer:
        kinds = ["MatMul", "Gemm"]
        options |= {"reduce_range": True, "op_types_to_quantize": kinds, "nodes_to_exclude": keep}
        quantize_dynamic(prepared, onnx_path, **options)
        # patches and first block, one in fifteen products, make a third of the error of int8
        products = [node.name for node in onnx.load(fp32).graph.node if node.op_type in kinds]
        keep += [node.name for node in convolutions[:1]] + products[:6]
    elif sample is not None:
        kinds = ["Conv", "Gemm", "Add", "Clip", "Relu"]  # in 8 bits: 7 put MobileNetV2 off by 25% instead of 16%
        options |= {"activation_type": QuantType.QUInt8, "op_types_to_quantize": kinds, "nodes_to_exclude": keep}
        quantize_static(prepared, onnx_path, Frames(), **options)
    root.setLevel(level)
    prepared.unlink()
    if sample is not None:
        depthwise = any(a.name == "group" and a.i > 1 for node in convolutions for a in node.attribute)
        model = openvino.convert_model(fp32)
        model = quantise(model, sample, transformer=transformer, depthwise=depthwise, keep=keep)
        openvino_path.parent.mkdir(exist_ok=True)
        openvino.save_model(model, openvino_path, compress_to_fp16=False)


def scale_tokens(model) -> list[str]:
    """Prepare a transformer, an onnx.ModelProto in float, for products in 8 bits; gives the products' names, in order.

    It computes the same, but for GELU, by tanh in one node: what is multiplied by weights is divided token by token by
    its largest number, since some tokens have a hundred times what others have and all get one scale.
    """
    from onnx import helper, numpy_helper
    from onnxruntime.transformers.fusion_gelu import FusionGelu
    from onnxruntime.transformers.onnx_model import OnnxModel

    graph, fused = model.graph, OnnxModel(model)
    FusionGelu(fused).apply()
    fused.topological_sort()
    for node in graph.node:
        if (node.domain, node.op_type) == ("com.microsoft", "Gelu"):
            node.op_type = "FastGelu"
    weights, head = {tensor.name for tensor in graph.initializer}, head_nodes(model)
    graph.initializer.append(numpy_helper.from_array(np.array([-1]), "last_axis"))
    graph.initializer.append(numpy_helper.from_array(np.float32(1e-3), "least"))
    nodes, products = [], []
    for node in graph.node:
        if node.op_type != "MatMul" or node.input[1] not in weights or node.name in head:
            nodes.append(node)
            continue
        given, result = node.input[0], node.output[0]
        size, most, scale, even, product = (f"{node.name}_{k}" for k in ("size", "most", "scale", "even", "product"))
        node.input[0], node.output[0] = even, product
        nodes.append(helper.make_node("Abs", [given], [size], size))
        nodes.append(helper.make_node("ReduceMax", [size, "last_axis"], [most], most, keepdims=1))
        nodes.append(helper.make_node("Max", [most, "least"], [scale], scale))
        nodes.append(helper.make_node("Div", [given, scale], [even], even))
        nodes += [node, helper.make_node("Mul", [product, scale], [result], f"{node.name}_result")]
        products.append(node.name)
    del graph.node[:]
    graph.node.extend(nodes)
    return products


def write_web(fp32: Path, path: Path, transformer: bool) -> None:
    """The .onnx that one thread of WebAssembly runs best (`bench.py web`): small, and nothing slower than float.

    A transformer multiplies in 8 bits, which takes half the time. Weights are unsigned, so that no CPU's sums saturate,
    and have all 8 bits. Of a convolutional network only the weights are kept in 8 bits, one scale a filter, and
    computed with in float: 8-bit convolutions are slower there.
    """
    import onnx
    from onnx import helper, numpy_helper
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    if transformer:
        quant_pre_process(str(fp32), str(path), skip_symbolic_shape=True)
        model = onnx.load(path)
        # the first block's third product, one of 48, makes a fifth of the error (DINOv2-S)
        keep = head_nodes(model) + scale_tokens(model)[2:3]
        onnx.save(model, path)
        how = {"per_channel": True, "weight_type": QuantType.QUInt8, "extra_options": {"WeightSymmetric": True}}
        quantize_dynamic(path, path, op_types_to_quantize=["MatMul", "Gemm"], nodes_to_exclude=keep, **how)
        return
    model = onnx.load(fp32)
    weights, scaled = {node.input[1] for node in model.graph.node if node.op_type == "Conv"}, []
    for tensor in list(model.graph.initializer):
        if tensor.name in weights:
            values = numpy_helper.to_array(tensor)
            scale = np.abs(values).max(axis=(1, 2, 3)).clip(1e-12) / 127
            rounded = np.round(values / scale[:, None, None, None]).astype(np.int8)
            name = tensor.name
            tensor.CopyFrom(numpy_helper.from_array(rounded, f"{name}_int8"))
            model.graph.initializer.append(numpy_helper.from_array(scale, f"{name}_scale"))
            inputs = [f"{name}_int8", f"{name}_scale"]
            scaled.append(helper.make_node("DequantizeLinear", inputs, [name], f"{name}_scaled", axis=0))
    nodes = [*scaled, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, path)
