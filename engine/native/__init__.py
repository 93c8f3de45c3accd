"""The native step on a CPU: calls of a C++ library for a decode or prefill step, and for its draws."""
