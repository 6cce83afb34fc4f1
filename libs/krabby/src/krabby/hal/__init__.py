"""What every HAL does alike: the safety gate behind the wire, the state it publishes, its metrics.

A HAL adds where measurements come from and where drive commands go.
"""
