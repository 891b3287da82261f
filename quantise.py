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


@contextlib.contextmanager
def quiet_log():
    """ONNX Runtime's quantisation logs through the root logger."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)


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

    prepared = fp32.with_suffix(".prepared.onnx")
    quant_pre_process(str(fp32), str(prepared), skip_symbolic_shape=True)
    model = onnx.load(prepared)
    keep, options = head_nodes(model), {"per_channel": True, "weight_type": QuantType.QInt8}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    if transformer:
        kinds = ["MatMul", "Gemm"]
        options |= {"reduce_range": True, "op_types_to_quantize": kinds, "nodes_to_exclude": keep}
        with quiet_log():
            quantize_dynamic(prepared, onnx_path, **options)
        # patches and first block, one in fifteen products, make a third of the error of int8
        products = [node.name for node in onnx.load(fp32).graph.node if node.op_type in kinds]
        keep += [node.name for node in convolutions[:1]] + products[:6]
    elif sample is not None:
        kinds = ["Conv", "Gemm", "Add", "Clip", "Relu"]  # in 8 bits: 7 put MobileNetV2 off by 25% instead of 16%
        options |= {"activation_type": QuantType.QUInt8, "op_types_to_quantize": kinds, "nodes_to_exclude": keep}
        with quiet_log():
            quantize_static(prepared, onnx_path, Frames(), **options)
    prepared.unlink()
    if sample is not None:
        depthwise = any(a.name == "group" and a.i > 1 for node in convolutions for a in node.attribute)
        model = openvino.convert_model(fp32)
        model = quantise(model, sample, transformer=transformer, depthwise=depthwise, keep=keep)
        openvino_path.parent.mkdir(exist_ok=True)
        openvino.save_model(model, openvino_path, compress_to_fp16=False)


def ease_products(model, frames: np.ndarray) -> None:
    """Prepare a transformer, an onnx.ModelProto in float, for products in 8 bits; it computes the same as before.

    What a LayerNorm gives is divided channel by channel, and the weights behind it multiplied, by the root of the
    channel's largest number on frames uint8 [N, S, S, 3] over its largest weight (SmoothQuant, Xiao 2023). What GELU
    gives is divided token by token by its largest number, since some tokens have a hundred times what others have; and
    GELU becomes one node, by tanh, instead of five.
    """
    import onnxruntime
    from onnx import helper, numpy_helper

    graph, users, made = model.graph, {}, {name: node for node in model.graph.node for name in node.output}
    weights = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)

    def product(name: str):
        """The only user of a tensor, if it multiplies by weights."""
        node = users[name][0]
        return node if len(users[name]) == 1 and node.op_type == "MatMul" and node.input[1] in weights else None

    def scale(node, place: int, by: np.ndarray) -> None:
        """Multiply a constant that a node reads, in a copy, since other nodes may read it too."""
        name = f"{node.name}_{place}"
        graph.initializer.append(numpy_helper.from_array(numpy_helper.to_array(weights[node.input[place]]) * by, name))
        node.input[place] = name

    norms = [
        n for n in graph.node if n.op_type == "LayerNormalization" and n.output[0] in users and product(n.output[0])
    ]
    seen = type(model)()
    seen.CopyFrom(model)
    seen.graph.output.extend(helper.make_tensor_value_info(node.output[0], 1, None) for node in norms)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(seen.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for node in norms:
        (values,), behind = session.run([node.output[0]], {"image": frames}), product(node.output[0])
        most = np.abs(values).max(axis=tuple(range(values.ndim - 1))).clip(1e-5)
        by = np.sqrt(most / np.abs(numpy_helper.to_array(weights[behind.input[1]])).max(axis=1).clip(1e-5))
        for place in range(1, len(node.input)):
            scale(node, place, 1 / by)
        scale(behind, 1, by[:, None])

    graph.initializer.append(numpy_helper.from_array(np.array([-1]), "last_axis"))
    graph.initializer.append(numpy_helper.from_array(np.float32(1e-3), "least"))
    for erf in [node for node in graph.node if node.op_type == "Erf"]:
        divide, add = made[erf.input[0]], users[erf.output[0]][0]  # (1 + erf(x / root of 2)) * half * x
        half = users[add.output[0]][0]
        gelu = users.get(half.output[0], [half])[0]
        if half.op_type != "Mul" or gelu.op_type != "Mul" or divide.input[0] not in gelu.input:
            continue
        behind = product(gelu.output[0])
        gelu.CopyFrom(helper.make_node("FastGelu", divide.input[:1], gelu.output, gelu.name, domain="com.microsoft"))
        for node in (divide, erf, add, half):
            graph.node.remove(node)
        if behind:
            given, name = gelu.output[0], behind.output[0]
            most = helper.make_node(
                "ReduceMax", [given, "last_axis"], [f"{given}_most"], f"{gelu.name}_most", keepdims=1
            )
            some = helper.make_node("Max", [f"{given}_most", "least"], [f"{given}_some"], f"{gelu.name}_some")
            less = helper.make_node("Div", [given, f"{given}_some"], [f"{given}_less"], f"{gelu.name}_less")
            back = helper.make_node("Mul", [f"{name}_less", f"{given}_some"], [name], f"{behind.name}_back")
            behind.input[0], behind.output[0] = f"{given}_less", f"{name}_less"
            place = list(graph.node).index(behind)
            for node in (back, less, some, most):
                graph.node.insert(place + (node is back), node)
    read = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in read]:
        graph.initializer.remove(tensor)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def write_web(fp32: Path, path: Path, frames: np.ndarray, transformer: bool) -> None:
    """The .onnx that one thread of WebAssembly runs best (`bench.py web`): small, and nothing slower than float.

    A transformer multiplies in 8 bits, which takes half the time; frames: uint8 [N, S, S, 3] for ease_products. Weights
    are unsigned, so that no CPU's sums saturate, and have all 8 bits. Of a convolutional network only the weights are
    kept in 8 bits, one scale a filter, and computed with in float: 8-bit convolutions are slower there.
    """
    import onnx
    from onnx import helper, numpy_helper
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    if transformer:
        quant_pre_process(str(fp32), str(path), skip_symbolic_shape=True)
        model = onnx.load(path)
        ease_products(model, frames)
        onnx.save(model, path)
        how = {"per_channel": True, "weight_type": QuantType.QUInt8, "extra_options": {"WeightSymmetric": True}}
        kinds = ["MatMul", "Gemm"]
        with quiet_log():
            quantize_dynamic(path, path, op_types_to_quantize=kinds, nodes_to_exclude=head_nodes(model), **how)
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
