// A model's tensors from the bytes in which page/weights.py keeps them, as Float32Arrays: the engine computes in
// float32.
//
// tensors: [{name, shape, dtype: "float32" | "float16" | "int8", offset, length, scales}], offsets and lengths in
// bytes; every offset is a multiple of four, so that a typed array can look at the bytes in place. Nothing of float32
// is copied.

export function decodeWeights(tensors, bytes) {
  const weights = {};
  for (const tensor of tensors) weights[tensor.name] = DECODERS[tensor.dtype](tensor, bytes);
  return weights;
}

const DECODERS = {
  float32: ({ offset, length }, bytes) => new Float32Array(bytes, offset, length / 4),
  float16({ offset, length }, bytes) {
    const halves = new Uint16Array(bytes, offset, length / 2);
    const values = new Float32Array(halves.length);
    for (let i = 0; i < halves.length; i++) values[i] = fromFloat16(halves[i]);
    return values;
  },
  // A matrix (rows, columns) of whole numbers; row r is multiplied by scale r.
  int8({ offset, length, scales, shape: [rows, columns] }, bytes) {
    const whole = new Int8Array(bytes, offset, length);
    const scale = new Float32Array(bytes, scales, rows);
    const values = new Float32Array(length);
    for (let r = 0, i = 0; r < rows; r++) {
      for (let c = 0; c < columns; c++, i++) values[i] = whole[i] * scale[r];
    }
    return values;
  },
};

// IEEE 754 half precision: a sign, 5 bits of exponent with a bias of 15, 10 bits of fraction. Exact in float32.
export function fromFloat16(half) {
  const sign = half & 0x8000 ? -1 : 1;
  const exponent = (half >> 10) & 0x1f;
  const fraction = half & 0x3ff;
  if (exponent === 0) return sign * fraction * 2 ** -24; // zero, or subnormal
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  for (let bit = 0; bit < 8; bit++) byte = byte & 1 ? (byte >>> 1) ^ 0xedb88320 : byte >>> 1;
  return byte;
});

// CRC-32, as zlib.crc32 in Python: of bytes, going on from the checksum of those before them.
export function crc32(bytes, before = 0) {
  let crc = ~before;
  for (let i = 0; i < bytes.length; i++) crc = (crc >>> 8) ^ CRC_TABLE[(crc ^ bytes[i]) & 0xff];
  return ~crc >>> 0;
}
