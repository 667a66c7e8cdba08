"""Keys and shapes of other programs' checkpoints, ResNet-50 and narrow heads, written out from their networks."""

C, K, C1, AUX = 16, 4, 8, 12  # channels of the heads, bases; the backbone is a whole ResNet-50


def norm(name, width, mean="running_mean", variance="running_var"):
    return {f"{name}.{leaf}": (width,) for leaf in ("weight", "bias", mean, variance)}


def conv_bn(conv, bn, out, inside, kernel=3):
    return {f"{conv}.weight": (out, inside, kernel, kernel)} | norm(bn, out)


def stages(name, shortcut=("downsample.0", "downsample.1"), conv="conv{}", bn="bn{}", start=1, stem=64, norm=norm):
    """The four stages of a ResNet-50; `name` has a place for the stage and one for the block."""
    shapes, before = {}, stem
    for stage, (blocks, width) in enumerate(zip((3, 4, 6, 3), (64, 128, 256, 512), strict=True)):
        for block in range(blocks):
            here = name.format(stage, block)
            for i, (out, inside, k) in enumerate(((width, before, 1), (width, width, 3), (4 * width, width, 1)), start):
                shapes[f"{here}.{conv.format(i)}.weight"] = (out, inside, k, k)
                shapes |= norm(f"{here}.{bn.format(i)}", out)
            if block == 0:
                shapes[f"{here}.{shortcut[0]}.weight"] = (4 * width, before, 1, 1)
                shapes |= norm(f"{here}.{shortcut[1]}", 4 * width)
            before = 4 * width
    return shapes


def torch_stages(prefix, stem=64):
    return {f"{prefix}layer{int(key[0]) + 1}{key[1:]}": shape for key, shape in stages("{}.{}", stem=stem).items()}


def stem(conv, bns, width):
    a, b, c = conv
    return conv_bn(a, bns[0], width, 3) | conv_bn(b, bns[1], width, width) | conv_bn(c, bns[2], 2 * width, width)


def classifier(name, classes, inside, kernel=1):
    return {f"{name}.weight": (classes, inside, kernel, kernel), f"{name}.bias": (classes,)}


def original():
    shapes = stem([f"extractor.0.{i}" for i in (0, 3, 6)], ["extractor.0.1", "extractor.0.4", "extractor.1"], 64)
    shapes |= {f"extractor.{int(k[5]) + 3}{k[6:]}": shape for k, shape in torch_stages("", stem=128).items()}
    shapes |= conv_bn("fc0.conv", "fc0.bn", C, 2048) | {"emau.mu": (1, C, K)} | classifier("emau.conv1", C, C)
    shapes |= conv_bn("emau.conv2.0", "emau.conv2.1", C, C, 1) | conv_bn("fc1.0.conv", "fc1.0.bn", C1, C)
    return shapes | classifier("fc2", 21, C1)


def mmseg():
    shapes = stem([f"backbone.stem.{i}" for i in (0, 3, 6)], [f"backbone.stem.{i}" for i in (1, 4, 7)], 32)
    shapes |= torch_stages("backbone.")
    head, aux = "decode_head", "auxiliary_head"
    shapes |= conv_bn(f"{head}.ema_in_conv.conv", f"{head}.ema_in_conv.bn", C, 2048)
    shapes |= {f"{head}.ema_module.bases": (1, C, K)} | classifier(f"{head}.ema_mid_conv.conv", C, C)
    shapes |= conv_bn(f"{head}.ema_out_conv.conv", f"{head}.ema_out_conv.bn", C, C, 1)
    shapes |= conv_bn(f"{head}.bottleneck.conv", f"{head}.bottleneck.bn", C1, C)
    shapes |= conv_bn(f"{head}.conv_cat.conv", f"{head}.conv_cat.bn", C1, 2048 + C1)
    shapes |= classifier(f"{head}.conv_seg", 19, C1)
    return (
        shapes | conv_bn(f"{aux}.convs.0.conv", f"{aux}.convs.0.bn", AUX, 1024) | classifier(f"{aux}.conv_seg", 19, AUX)
    )


def ssseg():
    shapes = {key.replace("backbone.", "backbone_net."): s for key, s in mmseg().items() if key.startswith("backbone.")}
    shapes |= conv_bn("ema_in_conv.0", "ema_in_conv.1", C, 2048) | {"ema_module.bases": (1, C, K)}
    shapes |= classifier("ema_mid_conv", C, C) | conv_bn("ema_out_conv.0", "ema_out_conv.1", C, C, 1)
    shapes |= conv_bn("bottleneck.0", "bottleneck.1", C, C) | conv_bn("decoder.0", "decoder.1", C, 2048 + C)
    shapes |= classifier("decoder.4", 150, C)
    return (
        shapes
        | conv_bn("auxiliary_decoder.0", "auxiliary_decoder.1", AUX, 1024)
        | classifier("auxiliary_decoder.4", 150, AUX)
    )


def paddle_norm(name, width):
    return norm(name, width, "_mean", "_variance")


def paddle(name, out, inside, kernel=3, bias=True):
    shapes = {f"{name}._conv.weight": (out, inside, kernel, kernel)} | paddle_norm(f"{name}._batch_norm", out)
    return shapes | ({f"{name}._conv.bias": (out,)} if bias else {})


def paddleseg():
    shapes = {}
    for i, (out, inside) in enumerate(((32, 3), (32, 32), (64, 32)), 1):
        shapes |= paddle(f"backbone.conv1_{i}", out, inside, bias=False)
    short = ("short._conv", "short._batch_norm")
    shapes |= stages("backbone.bb_{}_{}", short, "conv{}._conv", "conv{}._batch_norm", start=0, norm=paddle_norm)
    shapes |= {"head.emau.mu": (1, C, K)} | paddle("head.ema_in_conv", C, 2048) | classifier("head.ema_mid_conv", C, C)
    shapes |= paddle("head.ema_out_conv", C, C, 1) | paddle("head.bottleneck", C1, C)
    shapes |= classifier("head.cls.1", 19, C1) | paddle("head.aux.0", AUX, 1024) | classifier("head.aux.2", 19, AUX)
    return shapes | paddle("head.conv_cat", C1, 2048 + C1)


FC = {"fc.weight": (1000, 2048), "fc.bias": (1000,)}


def encoding():
    return stem([f"conv1.{i}" for i in (0, 3, 6)], ["conv1.1", "conv1.4", "bn1"], 64) | torch_stages("", 128) | FC


def v1c():
    return stem([f"stem.{i}" for i in (0, 3, 6)], [f"stem.{i}" for i in (1, 4, 7)], 32) | torch_stages("") | FC


def torchvision():
    return {"conv1.weight": (64, 3, 7, 7)} | norm("bn1", 64) | torch_stages("") | FC


def timm_d():
    shapes = {key.replace("downsample.1", "downsample.2"): shape for key, shape in torch_stages("").items()}
    shapes = {key.replace("downsample.0", "downsample.1"): shape for key, shape in shapes.items()}
    return stem([f"conv1.{i}" for i in (0, 3, 6)], ["conv1.1", "conv1.4", "bn1"], 32) | shapes | FC


WHOLE = {"original": original(), "mmseg": mmseg(), "ssseg": ssseg(), "paddleseg": paddleseg()}
BACKBONES = {"encoding": encoding(), "torchvision": torchvision(), "v1c": v1c(), "timm": timm_d()}
SHAPES = WHOLE | BACKBONES
