// Parsing of a WeightManifest. A rectangle that passes here lies inside its source tensor, inside
// its file, and inside its destination.
#include "program/manifest.h"

#include <cmath>
#include <unordered_set>

#include "core/error.h"
#include "core/mxfp4.h"

namespace nanoweave {

namespace {

constexpr int64_t kMaxExtent = int64_t{1} << 40;  // products of two fit __int128, sums int64
constexpr int64_t kMaxBufferBytes = int64_t{1} << 44;

int64_t get_extent(const Json& json, const char* name, int64_t low) {
  const int64_t value = json.at(name).as_int();
  if (value < low || value > kMaxExtent)
    fail(ErrorCode::kProgram, "manifest: %s is %lld", name, static_cast<long long>(value));
  return value;
}

Layout parse_layout(const std::string& name) {
  if (name == "plain") return Layout::kPlain;
  if (name == "matmul") return Layout::kMatmul;
  fail(ErrorCode::kProgram, "manifest: unknown layout '%.64s'", name.c_str());
}

// The destination seen as a matrix; a vector is [1, n].
struct Extent {
  int64_t rows, cols;
};

Extent matrix_extent(const std::vector<int64_t>& shape) {
  if (shape.size() == 1) return {1, shape[0]};
  int64_t cols = 1;
  for (size_t i = 1; i < shape.size(); ++i) cols *= shape[i];
  return {shape[0], cols};
}

// Bytes that start at `offset` of a file and end within it.
void require_within(const WeightManifest& manifest, int file, __int128 offset, __int128 bytes,
                    const char* what, const WeightBuffer& buffer) {
  if (offset + bytes > manifest.files[file].bytes)
    fail(ErrorCode::kSafetensors, "'%s': the %s of '%s' ends past the file's %lld bytes",
         manifest.files[file].path.c_str(), what, buffer.name.c_str(),
         static_cast<long long>(manifest.files[file].bytes));
}

int parse_file(const Json& json, const WeightManifest& manifest, const WeightBuffer& buffer) {
  const int64_t file = get_extent(json, "file", 0);
  if (file >= static_cast<int64_t>(manifest.files.size()))
    fail(ErrorCode::kProgram, "manifest: '%s' names file %lld of %zu", buffer.name.c_str(),
         static_cast<long long>(file), manifest.files.size());
  return static_cast<int>(file);
}

bool is_float(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kBf16 || dtype == DType::kF16;
}

DType parse_scales_dtype(const Json& json, const WeightBuffer& buffer, Encoding encoding) {
  const DType dtype = parse_dtype(json.at("dtype").as_string());
  const bool fits = encoding == Encoding::kE4m3 ? dtype == DType::kF32 || dtype == DType::kBf16
                                                : dtype == DType::kU8;
  if (!fits)
    fail(ErrorCode::kProgram, "manifest: '%s' has scales of %s; e4m3 takes f32 or bf16, mxfp4 u8",
         buffer.name.c_str(), dtype_name(dtype));
  return dtype;
}

// What turns the source's bytes into numbers: `scales`, and its format.
void parse_scales(const Json& json, const WeightManifest& manifest, const WeightBuffer& buffer,
                  WeightPiece& piece) {
  const std::string& format = json.at("format").as_string();
  if (format != "e4m3" && format != "mxfp4")
    fail(ErrorCode::kProgram, "manifest: '%s' has unknown scales '%.64s'", buffer.name.c_str(),
         format.c_str());
  piece.encoding = format == "e4m3" ? Encoding::kE4m3 : Encoding::kMxfp4;
  piece.scales_file = parse_file(json, manifest, buffer);
  piece.scales_offset = get_extent(json, "offset", 0);
  piece.scales_dtype = parse_scales_dtype(json, buffer, piece.encoding);
  const auto blocks_of = [](int64_t extent) { return (extent + kScaleBlock - 1) / kScaleBlock; };
  const __int128 count = piece.encoding == Encoding::kE4m3
                             ? static_cast<__int128>(blocks_of(piece.rows)) * blocks_of(piece.cols)
                             : static_cast<__int128>(piece.rows) * (piece.cols / kMxfp4Block);
  require_within(manifest, piece.scales_file, piece.scales_offset,
                 count * dtype_bytes(piece.scales_dtype), "scales", buffer);
  const int64_t step = piece.transposed ? piece.row_step : piece.col_step;
  if (piece.dtype != DType::kU8 || !is_float(buffer.dtype) || step != 1 ||
      (piece.transposed && piece.encoding == Encoding::kMxfp4))
    fail(ErrorCode::kProgram, "manifest: '%s' cannot take %s from %s", buffer.name.c_str(),
         format.c_str(), dtype_name(piece.dtype));
  if (piece.encoding == Encoding::kMxfp4 && piece.cols % kMxfp4Block != 0)
    fail(ErrorCode::kProgram, "manifest: '%s' takes mxfp4 rows of %lld, not of whole blocks",
         buffer.name.c_str(), static_cast<long long>(piece.cols));
}

// Whether every `step`-th of `count` elements from `start` on lies below `size`.
bool fits(int64_t start, int64_t count, int64_t step, int64_t size) {
  if (count == 0) return start <= size;
  return static_cast<__int128>(count - 1) * step + start < size;
}

WeightPiece parse_piece(const Json& json, const WeightManifest& manifest,
                        const WeightBuffer& buffer) {
  WeightPiece piece;
  piece.file = parse_file(json, manifest, buffer);
  piece.offset = get_extent(json, "offset", 0);
  piece.dtype = parse_dtype(json.at("dtype").as_string());
  piece.rows = get_extent(json, "rows", 1);
  piece.cols = get_extent(json, "cols", 1);
  piece.row_start = get_extent(json, "rowStart", 0);
  piece.row_count = get_extent(json, "rowCount", 0);
  piece.col_start = get_extent(json, "colStart", 0);
  piece.col_count = get_extent(json, "colCount", 0);
  piece.dest_row = get_extent(json, "destRow", 0);
  piece.dest_col = get_extent(json, "destCol", 0);
  if (json.find("rowStep")) piece.row_step = get_extent(json, "rowStep", 1);
  if (json.find("colStep")) piece.col_step = get_extent(json, "colStep", 1);
  if (const Json* transposed = json.find("transposed")) piece.transposed = transposed->as_bool();
  if (const Json* add = json.find("add")) piece.add = static_cast<float>(add->as_number());
  if (!std::isfinite(piece.add))
    fail(ErrorCode::kProgram, "manifest: '%s' adds a number beyond float32", buffer.name.c_str());

  if (!fits(piece.row_start, piece.row_count, piece.row_step, piece.rows) ||
      !fits(piece.col_start, piece.col_count, piece.col_step, piece.cols))
    fail(ErrorCode::kProgram, "manifest: '%s' takes a rectangle outside its source tensor",
         buffer.name.c_str());
  // A step that is never taken is not looked at; then steps are within the extents.
  if (piece.row_count <= 1) piece.row_step = 1;
  if (piece.col_count <= 1) piece.col_step = 1;
  if (const Json* scales = json.find("scales")) parse_scales(*scales, manifest, buffer, piece);
  require_within(manifest, piece.file, piece.offset,
                 static_cast<__int128>(piece.rows) * piece.cols * piece.bits() / 8, "source",
                 buffer);
  const Extent dest = matrix_extent(buffer.shape);
  if (piece.dest_row + piece.row_count > dest.rows || piece.dest_col + piece.col_count > dest.cols)
    fail(ErrorCode::kProgram, "manifest: a piece lands outside '%s'", buffer.name.c_str());
  const bool converts = piece.add != 0 || piece.transposed || piece.col_step != 1;
  if (piece.encoding == Encoding::kPlain && !(is_float(piece.dtype) && is_float(buffer.dtype)) &&
      (piece.dtype != buffer.dtype || converts))
    fail(ErrorCode::kProgram, "manifest: '%s' cannot convert %s to %s", buffer.name.c_str(),
         dtype_name(piece.dtype), dtype_name(buffer.dtype));
  return piece;
}

WeightBuffer parse_buffer(const Json& json, const WeightManifest& manifest, int world) {
  WeightBuffer buffer;
  buffer.name = json.at("name").as_string();
  const std::string& space = json.at("space").as_string();
  if (space != "weight" && space != "kv")
    fail(ErrorCode::kProgram, "manifest: '%s' has unknown space '%.64s'", buffer.name.c_str(),
         space.c_str());
  buffer.space = space == "kv" ? Space::kKv : Space::kWeight;
  buffer.dtype = parse_dtype(json.at("dtype").as_string());
  buffer.layout = parse_layout(json.at("layout").as_string());
  __int128 bytes = dtype_bytes(buffer.dtype);
  for (const Json& dim : json.at("shape").items()) {
    const int64_t size = dim.as_int();
    if (size < 1 || size > kMaxExtent || (bytes *= size) > kMaxBufferBytes)
      fail(ErrorCode::kProgram, "manifest: '%s' has an impossible shape", buffer.name.c_str());
    buffer.shape.push_back(size);
  }
  const size_t dims = buffer.shape.size();
  if (buffer.space == Space::kKv ? dims != 5 : dims < 1 || dims > 8)
    fail(ErrorCode::kProgram, "manifest: '%s' has %zu dimensions", buffer.name.c_str(), dims);
  const bool float_matrix = dims == 2 && is_float(buffer.dtype);
  if (buffer.layout == Layout::kMatmul && (buffer.space == Space::kKv || !float_matrix))
    fail(ErrorCode::kProgram, "manifest: '%s' has layout matmul and must be a float matrix",
         buffer.name.c_str());

  const auto& ranks = json.at("ranks").items();
  if (const Json* host = json.find("hostBlocks")) {
    buffer.host_blocks = host->as_int();
    if (buffer.host_blocks < 0 || buffer.host_blocks > kMaxExtent ||
        buffer.host_blocks * (bytes / buffer.shape[0]) > kMaxBufferBytes)
      fail(ErrorCode::kProgram, "manifest: '%s' has an impossible number of host blocks",
           buffer.name.c_str());
  }
  if (buffer.host_blocks > 0 && buffer.space != Space::kKv)
    fail(ErrorCode::kProgram, "manifest: '%s' has host blocks and is no KV buffer",
         buffer.name.c_str());
  if (buffer.space == Space::kKv) {
    for (const Json& pieces : ranks)
      if (!pieces.items().empty())
        fail(ErrorCode::kProgram, "manifest: KV buffer '%s' has pieces", buffer.name.c_str());
    return buffer;
  }
  if (ranks.size() != static_cast<size_t>(world))
    fail(ErrorCode::kProgram, "manifest: '%s' has pieces for %zu ranks of %d", buffer.name.c_str(),
         ranks.size(), world);
  for (const Json& pieces : ranks) {
    buffer.ranks.emplace_back();
    for (const Json& piece : pieces.items())
      buffer.ranks.back().push_back(parse_piece(piece, manifest, buffer));
  }
  return buffer;
}

}  // namespace

WeightManifest parse_manifest(std::string_view text, int world) {
  const Json json = Json::parse(text);
  if (json.at("version").as_int() != 1) fail(ErrorCode::kProgram, "manifest: unknown version");
  WeightManifest manifest;
  for (const Json& file : json.at("files").items()) {
    manifest.files.push_back({file.at("path").as_string(), get_extent(file, "bytes", 0)});
    if (manifest.files.back().path.find('\0') != std::string::npos)
      fail(ErrorCode::kProgram, "manifest: a path holds a NUL byte");
  }
  std::unordered_set<std::string> names;
  for (const Json& item : json.at("buffers").items()) {
    manifest.buffers.push_back(parse_buffer(item, manifest, world));
    if (!names.insert(manifest.buffers.back().name).second)
      fail(ErrorCode::kProgram, "manifest: two buffers are called '%s'",
           manifest.buffers.back().name.c_str());
  }
  return manifest;
}

}  // namespace nanoweave
