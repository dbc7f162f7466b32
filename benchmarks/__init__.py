"""Scripts that measure and print JSON lines; none of it is asserted against a clock."""
