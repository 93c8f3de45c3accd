"""How many replicas there should be."""

from typing import Any

from ray.serve.autoscaling_policy import replica_queue_length_autoscaling_policy
from ray.serve.config import AutoscalingContext


def replicas_wanted(context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
    """What Serve's own policy says of client requests, or a batch's worth more for every batch that waits in engines.

    One client request may be many sequences (`n`, several prompts), and an engine's cache may be full before its batch
    is; Serve's count shows neither. Delays and bounds are Serve's.
    """
    wanted, state = replica_queue_length_autoscaling_policy(context)
    waiting = sum((context.aggregated_metrics or {}).get("num_requests_waiting", {}).values())
    if waiting < 1:  # on average over Serve's window: nobody waits long
        return wanted, state
    return max(wanted, context.current_num_replicas + waiting / context.config.target_ongoing_requests), state
