"""The number of replicas that the load needs."""

from typing import Any

from ray.serve.autoscaling_policy import replica_queue_length_autoscaling_policy
from ray.serve.config import AutoscalingContext


def replicas_wanted(context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
    """Return the replicas that Serve's own policy wants, or if that is more, one added for each batch that waits.

    One client request may be many engine requests (`n`, several prompts), and an engine's cache may be full before its
    batch is. Serve's count of client requests shows neither. Delays and limits are Serve's.
    """
    wanted, state = replica_queue_length_autoscaling_policy(context)
    waiting = sum((context.aggregated_metrics or {}).get("num_requests_waiting", {}).values())
    if waiting < 1:  # on average over Serve's window: no request waits long
        return wanted, state
    return max(wanted, context.current_num_replicas + waiting / context.config.target_ongoing_requests), state
