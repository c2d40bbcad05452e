"""Atomic files, resumable builds, locks, manifests, plug-ins and text checks."""
