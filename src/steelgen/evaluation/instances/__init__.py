"""Utility studies of `task: instance`: do generated pairs help instance segmentation?"""
