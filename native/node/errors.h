// Conversion of native failures to JavaScript errors with code, rank, op and step.
#pragma once

#include <napi.h>

#include <exception>

namespace nanoweave {

// The error object of a captured exception; anything but EngineError is ERR_INTERNAL.
Napi::Error to_js_error(Napi::Env env, const std::exception_ptr& failure);

// Runs `body` and throws what it throws as a JavaScript error.
template <typename Body>
auto with_js_errors(Napi::Env env, const Body& body) {
  try {
    return body();
  } catch (const Napi::Error&) {
    throw;
  } catch (...) {
    throw to_js_error(env, std::current_exception());
  }
}

}  // namespace nanoweave
