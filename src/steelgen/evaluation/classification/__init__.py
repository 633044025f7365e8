"""Utility studies of `task: classify`: do generated defective images help to tell sound from defective?"""
