"""Makes bundles and judges them: data, tracking, training runs, reports, the command line.

Reached through the command ``vae-anomaly``; the public Python interface is `vae_anomaly`.
"""
