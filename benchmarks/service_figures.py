"""The figures of the HTTP service in docs/benchmarks.md."""

from __future__ import annotations

from typing import Any

from benchmarks.figure import Figure, number, times_faster


def reached(values: dict[str, Any]) -> str:
    """Statuses of the overload in words."""
    counts = ", ".join(f"{count:,} x {status}" for status, count in values["statuses"].items())
    return (
        f"{counts}; {values['without_retry_after']} without Retry-After; slowest "
        f"{values['slowest_seconds']:.1f} s; p99 {values['p99_ms_before']:.0f} ms before, "
        f"{values['p99_ms_after']:.0f} ms 5 s after"
    )


def load_share(values: dict[str, Any]) -> str:
    """What generator and server took of a core, in the last round."""
    last = values["last"]
    return "; ".join(
        f"{name}: server {found['server_cpu']:.2f}, generator {found['generator_cpu']:.2f}"
        for name, found in last.items()
    )


def refused(values: dict[str, Any]) -> str:
    """What became of hostile bundles."""
    return (
        f"{values['opened']:,}; {values['accepted']} accepted, {values['crashes']} crashes, "
        f"{values['opened_outside']} files opened outside"
    )


SERVICE_FIGURES = (
    Figure(
        "service: 256 rows a request, binary, MLP, against the runtime called in process in one thread",
        "70 %",
        "service",
        "binary",
        lambda v: (
            f"{100 * v['share']['median']:.0f} % ({100 * v['share']['least']:.0f} to "
            f"{100 * v['share']['most']:.0f}), {number(max(v['rows_per_second']['http']))} rows/s at best"
        ),
    ),
    Figure(
        "service: single rows as JSON, 32 connections, against `mlflow models serve`",
        "10 times",
        "service",
        "singles",
        lambda v: (
            f"{times_faster(v['times'])}; {number(max(v['requests_per_second']['ours']))} requests/s at "
            f"best, {number(max(v['requests_per_second']['binary']))} binary"
        ),
    ),
    Figure("the same, share of a core taken", "", "service", "singles", load_share),
    Figure(
        "service: single rows, micro-batching against none, convolutional",
        "3 times",
        "service",
        "batching",
        lambda v: times_faster(v["conv"]["times"]),
    ),
    Figure(
        "service: single rows, micro-batching against none, MLP",
        "not slower",
        "service",
        "batching",
        lambda v: times_faster(v["mlp"]["times"]),
    ),
    Figure(
        "service: p99 of single rows at half of that load",
        "< 25 ms on 2 idle cores",
        "service",
        "latency",
        lambda v: (
            f"{v['p99_ms']:.1f} ms at {number(v['highest_rate'] / 2)} requests/s; median of "
            f"{', '.join(f'{p99:.1f}' for p99 in sorted(run['p99_ms'] for run in v['runs']))}"
        ),
    ),
    Figure(
        "service: reload under load",
        "20 flips, 5,000 requests, 0 failed, every answer equal to its version's",
        "service",
        "reload",
        lambda v: (
            f"{v['flips']} flips, {v['requests']:,} requests, {v['failed']} failed, "
            f"{v['unlike_their_version']} unlike their version; {v['seconds_per_flip']:.2f} s a flip"
        ),
    ),
    Figure(
        "service: ten times its capacity for 10 s",
        "only 200, or 429/503 with Retry-After; normal 5 s after",
        "service",
        "overload",
        reached,
    ),
    Figure(
        "service: 50 silent, partial or trickling clients",
        "closed at the deadline + 1 s, others unaffected",
        "service",
        "slow_clients",
        lambda v: (
            f"{v['closed']} closed, the last after {v['slowest_closed_seconds']:.1f} s of "
            f"{v['deadline_seconds']:g} s; others: {v['others_failed']} failed, "
            f"p99 {v['others_p99_ms']:.0f} ms ({v['others_p99_ms_before']:.0f} ms before)"
        ),
    ),
    Figure(
        "service: SIGTERM under load",
        "10 times, 0 admitted requests lost, exit within 30 s",
        "service",
        "sigterm",
        lambda v: (
            f"{v['runs']} times, {v['lost']} of {v['admitted']:,} lost, slowest exit "
            f"{v['slowest_exit_seconds']:.2f} s"
        ),
    ),
    Figure(
        "service: memory over 60 s at 80 % load; with 4 kB a request leaked on purpose",
        "< 20 MB; caught",
        "service",
        "soak",
        lambda v: (
            f"{v['growth_mb']:.1f} MB; {v['planted_growth_mb']:.0f} MB, "
            f"{'caught' if v['planted_leak_is_caught'] else 'missed'}"
        ),
    ),
    Figure(
        "service: ready, with the bundle that ships",
        "3 s",
        "service",
        "start",
        lambda v: f"{v['seconds']:.2f} s (median of {len(v['runs'])})",
    ),
)

GPU_FIGURES = (
    Figure(
        "GPU: share of the binding limit",
        "50 %",
        "gpu",
        "runtime",
        lambda v: "; ".join(
            f"{m['model']} {m['input']} {100 * m['share_of_limit']:.0f} % of {m['binding_limit']}"
            for m in v["models"]
        ),
    ),
    Figure(
        "GPU: training samples per second",
        "",
        "gpu",
        "training",
        lambda v: "; ".join(
            f"{m['model']} {m['precision']} {number(m['samples_per_second'])}" for m in v["models"]
        ),
    ),
    Figure(
        "service: hostile requests (schemathesis on the document, mutated bodies, mutated heads)",
        "5,000; no 5xx but 503 with Retry-After, alive, +50 MB at most",
        "fuzz",
        "fuzz",
        lambda v: (
            f"{v['total']:,}; {v['server_errors']} server errors, {v['failed_checks']} failed checks, "
            f"{'alive' if v['alive'] else 'dead'}, {v['memory_mb']:+.0f} MB"
        ),
    ),
    Figure(
        "mutated bundles, opened with the registry's digest",
        "2,000; 0 accepted, 0 crashes, no file opened outside",
        "hostile",
        "mutated",
        refused,
    ),
    Figure(
        "hostile graphs under a valid hash",
        "30; 0 accepted, 0 crashes, no file opened outside",
        "hostile",
        "graphs",
        refused,
    ),
)
