"""What computes a checked call: the plan, the products, and the steps that frameworks take as one."""
