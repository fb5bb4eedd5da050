{
  # The addon is built by cmake-js; this target lets tools that only know node-gyp reach it.
  "targets": [
    {
      "target_name": "nanoweave",
      "type": "none",
      "actions": [
        {
          "action_name": "cmake-js",
          "inputs": ["CMakeLists.txt"],
          "outputs": ["build/Release/nanoweave.node"],
          "action": ["node", "scripts/node-gyp-cmake.cjs"]
        }
      ]
    }
  ]
}
