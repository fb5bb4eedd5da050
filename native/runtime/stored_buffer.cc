#include "runtime/stored_buffer.h"

#include "core/error.h"

namespace nanoweave {

StoredBuffer describe_stored(const WeightBuffer& buffer) {
  StoredBuffer stored{.name = buffer.name,
                      .space = buffer.space,
                      .dtype = buffer.dtype,
                      .layout = buffer.layout,
                      .shape = buffer.shape,
                      .host_blocks = buffer.host_blocks};
  stored.rows = buffer.shape.size() == 1 ? 1 : buffer.shape[0];
  stored.cols = buffer.shape.size() == 1 ? buffer.shape[0] : 1;
  for (size_t i = 1; i < buffer.shape.size(); ++i) stored.cols *= buffer.shape[i];
  stored.bytes = stored.rows * stored.cols * dtype_bytes(stored.dtype);
  return stored;
}

const StoredBuffer& require_stored(const BufferDesc& buffer, const StoredBuffer* stored,
                                   int64_t host_blocks) {
  if (stored == nullptr)
    fail(ErrorCode::kProgram, "the program uses '%s', which loadWeights did not create",
         buffer.name.c_str());
  bool same = stored->space == buffer.space && stored->dtype == buffer.dtype &&
              stored->layout == buffer.layout && stored->shape.size() == buffer.shape.size();
  for (size_t i = 0; same && i < buffer.shape.size(); ++i)
    same = stored->shape[i] == buffer.shape[i].size;
  if (!same)
    fail(ErrorCode::kProgram, "'%s' was loaded with another space, dtype, layout or shape",
         buffer.name.c_str());
  if (buffer.space == Space::kKv && host_blocks > stored->host_blocks)
    fail(ErrorCode::kProgram, "the program swaps to %lld host blocks, '%s' was loaded with %lld",
         static_cast<long long>(host_blocks), buffer.name.c_str(),
         static_cast<long long>(stored->host_blocks));
  return *stored;
}

}  // namespace nanoweave
