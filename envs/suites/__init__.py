"""Tasks of other projects behind our protocol, named by a prefix: ``brax:ant``,
``playground:CheetahRun``. ``adapter`` wraps their environments; a module per suite finds and builds
them."""
