"""What every floor needs: errors, atomic writes, configuration, devices, progress.

Imports nothing of Parlance.
"""
