"""Atomic files, resumable builds, locks, manifests, plug-ins and checks of texts."""
