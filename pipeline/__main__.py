from pipeline.app import main

raise SystemExit(main())
