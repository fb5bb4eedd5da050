"""PyTorch and transformers on the same device, for rows beside ours.

    python3 bench/peers/torch_baselines.py ops    [--device cuda] [--out FILE]
    python3 bench/peers/torch_baselines.py logits --model FOLDER [--device cuda]
    python3 bench/peers/torch_baselines.py engine --model FOLDER [--batches 1,8,64] [--out FILE]

`ops` times what the bench suites time, at their sizes, under the keys that a row of ours has: op and
shape. `logits` writes what transformers computes for check-tokens.json of a bench model beside it.
`engine` decodes that model greedily with a static cache and torch.compile. Each prints one JSON
object; --small takes sizes that a CPU manages, to try the script itself.
"""

import argparse
import json
import math
import statistics
import sys
import time

import torch

ROTATED_BYTES = 512e6
WARM_UP = 3
SAMPLES = 7
SAMPLE_SECONDS = 0.02


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds_of(device, run):
    """Seconds of one call of `run`, by device events on a GPU."""
    if device.type != "cuda":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def capture(device, run):
    """`run` as a CUDA graph where it can be one: small ops are launch-bound otherwise."""
    if device.type != "cuda":
        return run
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def measure(device, sets, run_set, graph=True):
    """Median and best microseconds of run_set(i), over rotated sets of operands."""

    def run_all():
        for index in range(sets):
            run_set(index)

    replay = capture(device, run_all) if graph else run_all
    for _ in range(WARM_UP):
        replay()
    samples = []
    for _ in range(SAMPLES):
        spent, runs = 0.0, 0
        while spent < SAMPLE_SECONDS:
            spent += seconds_of(device, replay)
            runs += 1
        samples.append(1e6 * spent / runs / sets)
    return {"medianUs": statistics.median(samples), "minUs": min(samples), "samples": SAMPLES}


def count_sets(bytes_per_set):
    return max(2, min(256, math.ceil(ROTATED_BYTES / bytes_per_set)))


def random(device, *shape):
    return torch.randn(*shape, device=device, dtype=torch.bfloat16)


def time_copy(device, rows, width):
    sets = count_sets(4 * rows * width)
    pairs = [(random(device, rows, width), random(device, rows, width)) for _ in range(sets)]
    return measure(device, sets, lambda i: pairs[i][1].copy_(pairs[i][0]))


def time_matmul(device, m, n, k):
    sets = count_sets(2 * (n * k + m * k + m * n))
    operands = [
        (random(device, m, k), random(device, n, k), random(device, m, n)) for _ in range(sets)
    ]
    return measure(device, sets, lambda i: torch.mm(operands[i][0], operands[i][1].t(), out=operands[i][2]))


def time_prefill(device, tokens, heads=32, kv_heads=8, head_dim=128):
    sets = 2
    q = [random(device, 1, heads, tokens, head_dim) for _ in range(sets)]
    kv = [random(device, 2, 1, kv_heads, tokens, head_dim) for _ in range(sets)]
    attend = torch.nn.functional.scaled_dot_product_attention
    return measure(
        device, sets, lambda i: attend(q[i], kv[i][0], kv[i][1], is_causal=True, enable_gqa=True)
    )


def time_norm(device, rows, width):
    sets = count_sets(4 * rows * width)
    x = [random(device, rows, width) for _ in range(sets)]
    weight = random(device, width)
    return measure(
        device, sets, lambda i: torch.nn.functional.rms_norm(x[i], (width,), weight, 1e-5)
    )


def route(x, router, choices):
    scores, ids = torch.topk(torch.softmax(x.float() @ router, dim=-1), choices, dim=-1)
    return ids, scores / scores.sum(dim=-1, keepdim=True)


def experts_by_loop(x, ids, weights, gate_up, down):
    """The eager path of transformers: one matmul for the rows of each expert with rows."""
    y = torch.zeros_like(x)
    for expert in range(gate_up.shape[0]):
        token, place = torch.where(ids == expert)
        if token.numel() == 0:
            continue
        gate, up = (x[token] @ gate_up[expert].t()).chunk(2, dim=-1)
        out = (torch.nn.functional.silu(gate) * up) @ down[expert].t()
        y.index_add_(0, token, out * weights[token, place, None].to(x.dtype))
    return y


def experts_grouped(x, ids, weights, gate_up, down):
    """Rows sorted by expert, one grouped matmul each way (torch._grouped_mm, Hopper and newer)."""
    tokens, choices = ids.shape
    order = torch.argsort(ids.flatten(), stable=True)
    token = order // choices
    counts = torch.bincount(ids.flatten(), minlength=gate_up.shape[0])
    ends = torch.cumsum(counts, 0).to(torch.int32)
    hidden = torch._grouped_mm(x[token], gate_up.transpose(-2, -1), offs=ends)
    gate, up = hidden.chunk(2, dim=-1)
    out = torch._grouped_mm(torch.nn.functional.silu(gate) * up, down.transpose(-2, -1), offs=ends)
    scaled = out * weights.flatten()[order, None].to(x.dtype)
    return torch.zeros_like(x).index_add_(0, token, scaled)


def time_moe_layer(device, tokens, hidden, width, experts, choices):
    """One rank, choices drawn evenly; the faster of the two forms that runs."""
    x = random(device, tokens, hidden)
    router = random(device, hidden, experts).float()
    gate_up = random(device, experts, 2 * width, hidden) / hidden**0.5
    down = random(device, experts, hidden, width) / width**0.5
    forms = {"loop": experts_by_loop}
    if device.type == "cuda" and hasattr(torch, "_grouped_mm"):
        forms["grouped"] = experts_grouped

    def eager(form):
        def run(_):
            ids, weights = route(x, router, choices)
            return form(x, ids, weights, gate_up, down)

        return run

    # The loop asks the host for counts, so neither can be a CUDA graph: timed as it is run.
    times = {name: measure(device, 1, eager(form), graph=False) for name, form in forms.items()}
    best = min(times, key=lambda name: times[name]["medianUs"])
    return {**times[best], "form": best}


# [N, K] as in lib/bench/suites/matmul.ts: Llama 3 8B, and one rank of 70B over 8.
LLAMA_8B = [(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (128256, 4096)]
LLAMA_70B_TP8 = [(1280, 8192), (8192, 1024), (7168, 8192), (8192, 3584)]

SIZES = {
    "copy": [(4096, 4096), (16384, 8192), (65536, 16384)],
    "matmul": [(4096, 4096, 4096), (8192, 8192, 8192)]
    + [(m, n, k) for m in (1, 8, 64, 256) for n, k in LLAMA_8B]
    + [(m, n, k) for m in (64, 2048) for n, k in LLAMA_70B_TP8],
    "attention": [(1024,), (4096,), (8192,), (16384,)],
    "rms_norm": [(1, 4096), (64, 4096), (256, 8192), (2048, 4096), (8192, 8192)],
    "moe_layer": [(tokens, 2048, 768, 128, 8) for tokens in (1, 128, 4096)],
}
SMALL_SIZES = {
    "copy": [(64, 64)],
    "matmul": [(8, 64, 32)],
    "attention": [(64,)],
    "rms_norm": [(4, 64)],
    "moe_layer": [(8, 48, 32, 8, 2)],
}
TIMERS = {
    "copy": time_copy,
    "matmul": time_matmul,
    "attention": time_prefill,
    "rms_norm": time_norm,
    "moe_layer": time_moe_layer,
}


def run_ops(args, device):
    rows, failures = [], []
    for op, sizes in (SMALL_SIZES if args.small else SIZES).items():
        for size in sizes:
            shape = "×".join(map(str, size))
            try:
                rows.append({"op": op, "shape": shape, "dtype": "bf16", **TIMERS[op](device, *size)})
            except RuntimeError as error:
                failures.append({"op": op, "shape": shape, "error": str(error).splitlines()[0]})
            if device.type == "cuda":
                torch.cuda.empty_cache()
            print(f"torch {op} {shape}", file=sys.stderr)
    return {"rows": rows, "failures": failures}


def load_model(args, device):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.bfloat16)
    return model.to(device).eval()


@torch.no_grad()
def run_logits(args, device):
    model = load_model(args, device)
    with open(f"{args.model}/check-tokens.json") as file:
        tokens = json.load(file)
    logits = model(torch.tensor([tokens], device=device)).logits[0].float().cpu()
    logits.numpy().tofile(f"{args.model}/check-logits.f32")
    return {"positions": len(tokens), "vocab": logits.shape[1]}


@torch.no_grad()
def time_decode(model, device, batch, prompt, new_tokens):
    """Microseconds of one decode step with a static cache and a compiled step, and of the prefill."""
    from transformers import StaticCache

    vocab = model.config.vocab_size
    tokens = torch.randint(0, vocab, (batch, prompt), device=device)
    cache = StaticCache(config=model.config, max_cache_len=prompt + new_tokens + 1)

    def step(token, position):
        logits = model(
            token, past_key_values=cache, cache_position=position, use_cache=True, logits_to_keep=1
        ).logits
        return logits[:, -1].argmax(-1, keepdim=True)

    prefill = []
    for _ in range(3):
        cache.reset()
        positions = torch.arange(prompt, device=device)
        synchronize(device)
        begin = time.perf_counter()
        token = step(tokens, positions)
        synchronize(device)
        prefill.append(time.perf_counter() - begin)

    compiled = torch.compile(step, mode="reduce-overhead", fullgraph=False)
    steps = []
    for index in range(new_tokens):
        position = torch.tensor([prompt + index], device=device)
        synchronize(device)
        begin = time.perf_counter()
        token = compiled(token, position).clone()
        synchronize(device)
        steps.append(time.perf_counter() - begin)
    # The first steps compile and capture.
    return 1e6 * statistics.median(steps[len(steps) // 2 :]), 1e6 * min(prefill)


def run_engine(args, device):
    model = load_model(args, device)
    rows, failures = [], []
    prompt, new_tokens = (8, 6) if args.small else (128, 64)
    for batch in map(int, args.batches.split(",")):
        try:
            decode, prefill = time_decode(model, device, batch, prompt, new_tokens)
        except Exception as error:  # noqa: BLE001: whatever a version of transformers objects to
            failures.append({"batch": batch, "error": str(error).splitlines()[0][:300]})
            continue
        common = {"dtype": "bf16", "samples": new_tokens // 2}
        rows.append({"op": "decode", "shape": f"{batch}×{prompt}", "medianUs": decode, **common})
        rows.append({"op": "prefill", "shape": f"{batch}×{prompt}", "medianUs": prefill, **common})
        print(f"transformers batch {batch}: {decode:.0f} µs a step", file=sys.stderr)
    return {"rows": rows, "failures": failures}


def versions(device):
    found = {"torch": torch.__version__, "cuda": torch.version.cuda}
    if device.type == "cuda":
        found["device"] = torch.cuda.get_device_name()
        found["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
    try:
        import transformers

        found["transformers"] = transformers.__version__
    except ImportError:
        found["transformers"] = None
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["ops", "logits", "engine"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--model")
    parser.add_argument("--batches", default="1,8,64,256")
    parser.add_argument("--out")
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    if args.what != "ops" and args.model is None:
        parser.error(f"{args.what} needs --model")
    device = torch.device(args.device)
    torch.manual_seed(1)
    run = {"ops": run_ops, "logits": run_logits, "engine": run_engine}[args.what]
    report = {"what": args.what, "versions": versions(device), **run(args, device)}
    text = json.dumps(report, indent=1, ensure_ascii=False)
    if args.out is None:
        print(text)
    else:
        with open(args.out, "w") as file:
            file.write(text)


if __name__ == "__main__":
    main()
