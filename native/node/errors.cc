#include "node/errors.h"

#include <new>

#include "core/error.h"

namespace nanoweave {

namespace {

Napi::Error make_error(Napi::Env env, const char* message, ErrorCode code) {
  Napi::Error error = Napi::Error::New(env, message);
  error.Set("code", Napi::String::New(env, error_code_name(code)));
  return error;
}

}  // namespace

Napi::Error to_js_error(Napi::Env env, const std::exception_ptr& failure) {
  try {
    std::rethrow_exception(failure);
  } catch (const EngineError& error) {
    Napi::Error out = make_error(env, error.what(), error.code);
    if (error.rank >= 0) out.Set("rank", Napi::Number::New(env, error.rank));
    if (!error.op.empty()) out.Set("op", Napi::String::New(env, error.op));
    if (error.step >= 0) out.Set("step", Napi::Number::New(env, error.step));
    return out;
  } catch (const std::bad_alloc&) {
    return make_error(env, "out of memory", ErrorCode::kOutOfMemory);
  } catch (const std::exception& error) {
    return make_error(env, error.what(), ErrorCode::kInternal);
  } catch (...) {
    return make_error(env, "unknown native failure", ErrorCode::kInternal);
  }
}

}  // namespace nanoweave
