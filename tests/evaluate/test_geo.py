"""GeoTIFFs of class ids lie where their image lies; polygons, drawn again, give the ids back."""

import json
from itertools import pairwise

import numpy as np
import pytest

from deeplab_jax.cli import main
from deeplab_jax.data.images import read_mask, write_image
from deeplab_jax.errors import UserError
from deeplab_jax.evaluate import geo
from deeplab_jax.labels import colormap
from deeplab_jax.tasks import predict
from deeplab_jax.weights.folder import save
from tests.support.tiny import MadeUp, tiny_model, tiny_models

NAMES = ("ground", "house", "road")


def test_a_plain_image_is_on_no_map_and_a_missing_rasterio_is_named(tmp_path, monkeypatch) -> None:
    write_image(tmp_path / "plain.tif", np.zeros((33, 33, 3), np.uint8))
    (tmp_path / "damaged.tif").write_bytes(b"II*\0")
    assert not any(geo.has_ground(tmp_path / name) for name in ("plain.tif", "damaged.tif", "none.tif"))
    monkeypatch.setitem(__import__("sys").modules, "rasterio", None)
    with pytest.raises(UserError, match="--polygons: needs rasterio, which is not installed; type pip install"):
        geo.load_rasterio("--polygons")


@pytest.mark.parametrize("bands", [1, 3, 4, 9])
@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("options", [{}, {"BIGTIFF": "YES"}, {"tiled": True, "blockxsize": 16, "blockysize": 16}])
def test_a_map_is_found_whatever_the_file_holds(bands, kind, options, tmp_path) -> None:
    """Pillow opens few of these."""
    pytest.importorskip("rasterio")
    rasterio = geo.load_rasterio("a test")
    size = {"height": 20, "width": 30, "count": bands, "dtype": kind}
    transform = rasterio.Affine(2, 0, 600_000, 0, -2, 5_400_000)
    for name, place in (("map", {"crs": "EPSG:32632", "transform": transform}), ("plain", {})):
        with rasterio.open(tmp_path / f"{name}.tif", "w", driver="GTiff", **size, **options, **place) as file:
            file.write(np.zeros((bands, 20, 30), kind))
    assert geo.has_ground(tmp_path / "map.tif") and not geo.has_ground(tmp_path / "plain.tif")
    assert geo.read_ground(tmp_path / "map.tif").transform == transform


def test_polygons_follow_the_edges_of_pixels_around_holes() -> None:
    pytest.importorskip("rasterio")
    classes = np.zeros((5, 6), np.uint8)
    classes[1:4, 1:4] = 1
    classes[2, 2] = 2
    classes[:, 5] = 255
    found = {feature["properties"]["name"]: feature for feature in geo.polygons(classes, NAMES)}
    assert found["house"]["properties"] == {"class": 1, "name": "house", "pixels": 8, "area": 8}
    outer, hole = found["house"]["geometry"]["coordinates"]
    assert {tuple(point) for point in outer} == {(1, 1), (4, 1), (4, 4), (1, 4)} and outer[0] == outer[-1]
    assert {tuple(point) for point in hole} == {(2, 2), (3, 2), (3, 3), (2, 3)}
    # Counterclockwise: a positive sum of x * dy. Clockwise for the hole.
    turn = [sum(a[0] * b[1] - b[0] * a[1] for a, b in pairwise(r)) for r in (outer, hole)]
    assert turn == [18, -2]
    assert found["ground"]["properties"]["pixels"] == 16 and len(found) == 3


@pytest.mark.parametrize("seed", range(3))
def test_polygons_drawn_again_are_the_ids(seed, tmp_path) -> None:
    rasterio = pytest.importorskip("rasterio")
    features = pytest.importorskip("rasterio.features")
    classes = np.random.default_rng(seed).choice(np.uint8([0, 1, 2, 255]), (40, 70))
    classes[10:30, 20:50] = 1
    transform = rasterio.Affine(0.5, 0, 600_000, 0, -0.5, 5_400_000)
    ground = geo.Ground(rasterio.crs.CRS.from_epsg(32632), transform)
    geo.write_polygons(tmp_path / "a.geojson", classes, NAMES, ground)
    read = json.loads((tmp_path / "a.geojson").read_text())
    assert read["type"] == "FeatureCollection"
    assert read["crs"] == {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32632"}}
    shapes = [(feature["geometry"], feature["properties"]["class"]) for feature in read["features"]]
    drawn = features.rasterize(shapes, out_shape=(40, 70), fill=255, transform=transform, dtype="uint8")
    np.testing.assert_array_equal(drawn, classes)
    for k in range(3):
        rows = [feature["properties"] for feature in read["features"] if feature["properties"]["class"] == k]
        assert sum(row["pixels"] for row in rows) == (classes == k).sum()
        assert sum(row["area"] for row in rows) == (classes == k).sum() / 4  # Pixels of half a metre.


def test_predict_keeps_a_geotiff_on_its_map(tmp_path, capsys) -> None:
    rasterio = pytest.importorskip("rasterio")
    with tiny_models():
        model, variables = tiny_model("cascade_tiny")
        image = MadeUp(((60, 90),))[0]["image"]
        image[:7, :9] = 0  # No data.
        transform = rasterio.Affine(2, 0, 600_000, 0, -2, 5_400_000)
        kind = {"driver": "GTiff", "dtype": "uint8", "count": 3, "nodata": 0, "height": 60, "width": 90}
        with rasterio.open(tmp_path / "field.tif", "w", crs="EPSG:32632", transform=transform, **kind) as file:
            file.write(image.transpose(2, 0, 1))
        write_image(tmp_path / "plain.png", image)
        save(tmp_path / "model", model, variables, {"class_names": ["a", "b", "c", "d"]})
        out = tmp_path / "out"
        inputs = [str(tmp_path / "field.tif"), str(tmp_path / "plain.png")]
        flags = ["--polygons", "--window", "40,48", "--overlap", "0.5", "--blend", "gaussian"]
        assert main(["predict", "--model", str(tmp_path / "model"), "--out", str(out), *flags, *inputs]) == 0
        assert main(["predict", "--model", str(tmp_path / "model"), "--out", str(tmp_path), inputs[0]]) == 2
    assert "field.tif: an input that a prediction would overwrite" in capsys.readouterr().err
    kinds = (".geojson", ".png", "_overlay.png")
    assert {path.name for path in out.iterdir()} == {
        "field.tif",
        "index.html",
        "index_files",
        *(f"{n}{k}" for n in ("field", "plain") for k in kinds),
    }
    ids, plain = read_mask(out / "field.png"), read_mask(out / "plain.png")
    nodata = np.all(image == 0, axis=-1)
    assert (ids[:7, :9] == 255).all() and (ids[~nodata] == plain[~nodata]).all()
    with rasterio.open(out / "field.tif") as file:
        assert file.crs.to_epsg() == 32632 and file.transform == transform and file.nodata == 255
        assert file.profile["tiled"] and file.profile["compress"] == "deflate"
        np.testing.assert_array_equal(file.read(1), ids)
        assert [file.colormap(1)[k][:3] for k in range(4)] == [tuple(colour) for colour in colormap(4)]
    on_map, in_pixels = (json.loads((out / f"{name}.geojson").read_text()) for name in ("field", "plain"))
    assert "crs" in on_map and "crs" not in in_pixels
    assert sum(feature["properties"]["area"] for feature in on_map["features"]) == 4 * (ids != 255).sum()
    assert sum(feature["properties"]["area"] for feature in in_pixels["features"]) == plain.size


def test_a_geotiff_that_is_turned_or_has_no_transform_is_refused(tmp_path) -> None:
    rasterio = pytest.importorskip("rasterio")
    kind = {"driver": "GTiff", "dtype": "uint8", "count": 1, "height": 8, "width": 8}
    points = [rasterio.control.GroundControlPoint(r, c, c * 2.0, r * 3.0) for r, c in ((0, 0), (0, 8), (8, 0))]
    with (
        pytest.warns(rasterio.errors.NotGeoreferencedWarning),
        rasterio.open(tmp_path / "points.tif", "w", **kind) as file,
    ):
        file.gcps = (points, rasterio.crs.CRS.from_epsg(4326))
    assert geo.has_ground(tmp_path / "points.tif")
    with pytest.raises(UserError, match=r"points\.tif: a GeoTIFF with no affine.*; type gdalwarp .*_warped\.tif$"):
        geo.read_ground(tmp_path / "points.tif")
    files = [tmp_path / name for name in ("a.png", "points.tif", "b.png")]
    for file in (files[0], files[2]):
        write_image(file, MadeUp(((40, 50),))[0]["image"])
    with tiny_models():
        done = predict((*tiny_model("cascade_tiny"), {}), files, tmp_path / "out")
    assert list(done.files) == [files[0], files[2]] and list(done.failed) == [files[1]]


def test_a_server_gets_every_pixel_and_nothing_else(tmp_path) -> None:
    """Also where a GeoTIFF has no data."""
    rasterio = pytest.importorskip("rasterio")
    image = MadeUp(((40, 50),))[0]["image"].transpose(2, 0, 1)
    image[:, :9] = 0
    kind = {"driver": "GTiff", "dtype": "uint8", "count": 3, "height": 40, "width": 50, "nodata": 0}
    place = rasterio.transform.from_origin(0, 0, 2, 2)
    with rasterio.open(tmp_path / "field.tif", "w", transform=place, **kind) as file:
        file.write(image)
    info = {"class_names": list("abcd"), "value_map": [[10, 0], [20, 1], [30, 2], [40, 3]]}
    with tiny_models():
        model = (*tiny_model("cascade_tiny"), info)
        predict(model, tmp_path / "field.tif", tmp_path / "out", ids="dataset")
        with pytest.raises(UserError, match="^--ids dataset: .*leave out --confidence and --polygons$"):
            predict(model, tmp_path / "field.tif", tmp_path / "out", ids="dataset", confidence=True, polygons=True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["field.png"]
    assert set(np.unique(read_mask(tmp_path / "out" / "field.png"))) <= {10, 20, 30, 40}
