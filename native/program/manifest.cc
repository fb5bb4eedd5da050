// Parsing of a WeightManifest. A rectangle that passes here lies inside its source tensor, inside
// its file, and inside its destination.
#include "program/manifest.h"

#include <cmath>
#include <unordered_set>

#include "core/error.h"

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

int64_t blocks_of(int64_t extent) { return (extent + kScaleBlock - 1) / kScaleBlock; }

void parse_scales(const Json& json, const WeightManifest& manifest, const WeightBuffer& buffer,
                  WeightPiece& piece) {
  const int64_t file = get_extent(json, "file", 0);
  if (file >= static_cast<int64_t>(manifest.files.size()))
    fail(ErrorCode::kProgram, "manifest: scales of '%s' are in file %lld of %zu",
         buffer.name.c_str(), static_cast<long long>(file), manifest.files.size());
  piece.is_e4m3 = true;
  piece.scales_file = static_cast<int>(file);
  piece.scales_offset = get_extent(json, "offset", 0);
  const __int128 end =
      static_cast<__int128>(blocks_of(piece.rows)) * blocks_of(piece.cols) * int64_t{4} +
      piece.scales_offset;
  if (end > manifest.files[file].bytes)
    fail(ErrorCode::kSafetensors, "'%s': the scales of '%s' end past the file's %lld bytes",
         manifest.files[file].path.c_str(), buffer.name.c_str(),
         static_cast<long long>(manifest.files[file].bytes));
  const bool to_floats =
      buffer.dtype == DType::kF32 || buffer.dtype == DType::kBf16 || buffer.dtype == DType::kF16;
  if (piece.dtype != DType::kU8 || !to_floats)
    fail(ErrorCode::kProgram, "manifest: '%s' cannot take e4m3 from %s", buffer.name.c_str(),
         dtype_name(piece.dtype));
}

WeightPiece parse_piece(const Json& json, const WeightManifest& manifest,
                        const WeightBuffer& buffer) {
  WeightPiece piece;
  const int64_t file = get_extent(json, "file", 0);
  if (file >= static_cast<int64_t>(manifest.files.size()))
    fail(ErrorCode::kProgram, "manifest: '%s' names file %lld of %zu", buffer.name.c_str(),
         static_cast<long long>(file), manifest.files.size());
  piece.file = static_cast<int>(file);
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
  if (const Json* add = json.find("add")) piece.add = static_cast<float>(add->as_number());
  if (!std::isfinite(piece.add))
    fail(ErrorCode::kProgram, "manifest: '%s' adds a number beyond float32", buffer.name.c_str());

  if (piece.row_start + piece.row_count > piece.rows ||
      piece.col_start + piece.col_count > piece.cols)
    fail(ErrorCode::kProgram, "manifest: '%s' takes a rectangle outside its source tensor",
         buffer.name.c_str());
  const __int128 end =
      static_cast<__int128>(piece.rows) * piece.cols * dtype_bytes(piece.dtype) + piece.offset;
  if (end > manifest.files[piece.file].bytes)
    fail(ErrorCode::kSafetensors, "'%s': the source of '%s' ends past the file's %lld bytes",
         manifest.files[piece.file].path.c_str(), buffer.name.c_str(),
         static_cast<long long>(manifest.files[piece.file].bytes));
  if (const Json* scales = json.find("e4m3Scales")) parse_scales(*scales, manifest, buffer, piece);
  const Extent dest = matrix_extent(buffer.shape);
  if (piece.dest_row + piece.row_count > dest.rows || piece.dest_col + piece.col_count > dest.cols)
    fail(ErrorCode::kProgram, "manifest: a piece lands outside '%s'", buffer.name.c_str());
  const bool integers =
      !piece.is_e4m3 && (piece.dtype == DType::kI32 || piece.dtype == DType::kU8 ||
                         buffer.dtype == DType::kI32 || buffer.dtype == DType::kU8);
  if (integers && (piece.dtype != buffer.dtype || piece.add != 0))
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
  const bool float_matrix =
      dims == 2 &&
      (buffer.dtype == DType::kF32 || buffer.dtype == DType::kBf16 || buffer.dtype == DType::kF16);
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
