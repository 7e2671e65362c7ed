"""The chart of a spectral density."""

from __future__ import annotations

from batchscope.records import SpectralDensity
from batchscope.report.marks import BLUE, Spec, altair, colours, done

# Below this share of the highest, a density is drawn as if it were that.
LEAST = 1e-7


def spectral_density(record: SpectralDensity) -> Spec | None:
    """The density of the eigenvalues on a logarithmic axis, since all but a few lie near zero."""
    alt = altair()
    top = max(record.density, default=0.0)
    if top <= 0:
        return None
    data = [
        {"eigenvalue": place, "density": max(density, LEAST * top), "kind": "density"}
        for place, density in zip(record.eigenvalues, record.density, strict=True)
    ]
    across = alt.X("eigenvalue:Q", title="eigenvalue", axis=alt.Axis(grid=False))
    upward = alt.Y(
        "density:Q",
        title="share of the eigenvalues per unit",
        scale=alt.Scale(type="log", domain=[LEAST * top, 2 * top], nice=False),
        axis=alt.Axis(format=".0e", tickCount=6),
    )
    base = alt.Chart(alt.Data(values=data)).encode(x=across, color=colours(alt, {BLUE: "density"}))
    tips = [alt.Tooltip("eigenvalue:Q", format=".4~g"), alt.Tooltip("density:Q", format=".3~g")]
    chart = alt.layer(
        base.mark_area(opacity=0.16, clip=True).encode(y=upward, y2=alt.datum(LEAST * top)),
        base.mark_line(strokeWidth=2, clip=True).encode(y=upward),
        base.mark_point(size=60, opacity=0, filled=True).encode(y=upward, tooltip=tips),
    )
    return done(chart)
