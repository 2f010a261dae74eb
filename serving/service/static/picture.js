// Pictures as arrays: raw pixel values (C, H, W) and which pixels are observed (H, W).

const HEAT = [[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]];

/** Raw values -> RGBA bytes; one channel becomes grey. */
export function toBytes(values, schema) {
  const { channels, height, width, low, high } = schema;
  const plane = height * width, bytes = new Uint8ClampedArray(plane * 4);
  for (let i = 0; i < plane; i++) {
    for (let c = 0; c < 3; c++) {
      const value = values[(channels === 1 ? 0 : c) * plane + i];
      bytes[4 * i + c] = (255 * (value - low)) / (high - low);
    }
    bytes[4 * i + 3] = 255;
  }
  return bytes;
}

export function show(canvas, values, schema) {
  put(canvas, toBytes(values, schema), schema);
}

function put(canvas, bytes, { height, width }) {
  canvas.width = width;
  canvas.height = height;
  canvas.getContext("2d").putImageData(new ImageData(bytes, width, height), 0, 0);
}

/** A map of non-negative values, channels added up, dark to bright; returns the value of the brightest. */
export function showHeat(canvas, values, schema) {
  const plane = schema.height * schema.width, sums = new Float64Array(plane);
  values.forEach((value, i) => { sums[i % plane] += Math.max(0, value ?? 0); });
  const bright = quantile(sums, 0.995) || Math.max(...sums) || 1;
  const bytes = new Uint8ClampedArray(plane * 4);
  sums.forEach((value, i) => {
    const at = Math.min(1, value / bright) * (HEAT.length - 1), j = Math.min(HEAT.length - 2, Math.floor(at));
    for (let c = 0; c < 3; c++) bytes[4 * i + c] = HEAT[j][c] + (at - j) * (HEAT[j + 1][c] - HEAT[j][c]);
    bytes[4 * i + 3] = 255;
  });
  put(canvas, bytes, schema);
  return bright;
}

function quantile(values, q) {
  const sorted = Float64Array.from(values).sort();
  return sorted[Math.floor(q * (sorted.length - 1))];
}

/** The sample with its hidden pixels hatched and a cursor, each pixel `scale` wide. */
export function showSample(canvas, values, observed, schema, cursor) {
  const { height, width } = schema, bytes = toBytes(values, schema);
  const scale = Math.max(1, Math.floor(352 / Math.max(height, width)));
  canvas.width = width * scale;
  canvas.height = height * scale;
  const pen = canvas.getContext("2d");
  for (let i = 0; i < height * width; i++) {
    const x = (i % width) * scale, y = Math.floor(i / width) * scale;
    if (observed[i]) {
      pen.fillStyle = `rgb(${bytes[4 * i]} ${bytes[4 * i + 1]} ${bytes[4 * i + 2]})`;
      pen.fillRect(x, y, scale, scale);
    } else {
      pen.fillStyle = "#7a5cc4";
      pen.fillRect(x, y, scale, scale);
      pen.fillStyle = "#b7a3ea";
      pen.beginPath();
      pen.moveTo(x, y + scale); pen.lineTo(x + scale, y); pen.lineTo(x + scale, y + scale / 3); pen.lineTo(x + scale / 3, y + scale);
      pen.fill();
    }
  }
  if (cursor) {
    pen.lineWidth = 2;
    pen.strokeStyle = "#ff9d00";
    pen.strokeRect(cursor.x * scale + 1, cursor.y * scale + 1, cursor.size * scale - 2, cursor.size * scale - 2);
  }
}

/** A file or blob -> raw values in the model's size; transparent pixels are missing. */
export async function readPicture(blob, schema) {
  const { channels, height, width, low, high, dtype } = schema;
  let picture;
  try {
    picture = await createImageBitmap(blob, { colorSpaceConversion: "none" });
  } catch {
    throw new Error("This file is not a picture that the browser can read.");
  }
  const canvas = new OffscreenCanvas(width, height), pen = canvas.getContext("2d");
  pen.imageSmoothingQuality = "high";
  const scale = Math.min(width / picture.width, height / picture.height);
  const w = picture.width * scale, h = picture.height * scale;
  pen.drawImage(picture, (width - w) / 2, (height - h) / 2, w, h);
  const bytes = pen.getImageData(0, 0, width, height).data, plane = height * width;
  const values = new Float32Array(channels * plane), observed = new Uint8Array(plane);
  const unit = (byte) => { const v = low + (byte / 255) * (high - low); return dtype === "uint8" ? Math.round(v) : v; };
  for (let i = 0; i < plane; i++) {
    const [r, g, b, a] = bytes.subarray(4 * i, 4 * i + 4);
    observed[i] = a >= 128 ? 1 : 0;
    const pixel = channels === 1 ? [0.299 * r + 0.587 * g + 0.114 * b] : [r, g, b];
    for (let c = 0; c < channels; c++) values[c * plane + i] = unit(pixel[c]);
  }
  return { values, observed };
}
