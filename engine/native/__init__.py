"""The native step: one call of a C++ library for a decode or prefill step on a CPU."""
