"""Bytes over a network: connections, retries, rate limits, proxies."""
