"""Agents as replicas of Ray Serve (``deploy/CLUSTER.md``). Only what runs in Ray imports Ray: ``application``."""
