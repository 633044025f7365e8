"""Conversion of ISDM (Rabensteiner 2023) configs, image trees and studies."""
